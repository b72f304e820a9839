"""Qwen3, dense: queries and keys are normalised head by head.

Reference: transformers' Qwen3ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, BlockBatch, GatedMlp, RmsNorm, Rope, RopeTables
from cvllm_jax.models.qwen2 import qwen_windows
from pallas_kernels.kv_write import KvPages

__all__ = ["Qwen3", "Qwen3Config"]

_DEFAULTS = {"head_dim": 128, "max_position_embeddings": 32768}


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3Config(DecoderConfig):
    attention_bias: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Qwen3Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        sizes = read_sizes(read)
        return Qwen3Config(
            **sizes,
            ropes=(Rope.from_config(read.config, sizes["head_dim"]),) * sizes["num_layers"],
            windows=qwen_windows(read, sizes["num_layers"]),
            attention_bias=read.flag("attention_bias"),
        )


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with a norm before and a residual around it."""

    def __init__(self, config: Qwen3Config, window: int | None, dtype: jnp.dtype) -> None:
        c = config
        self.attention_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        self.attention = Attention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
            dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias, window=window,
            q_norm=RmsNorm(c.head_dim, eps=c.norm_eps), k_norm=RmsNorm(c.head_dim, eps=c.norm_eps),
        )  # fmt: skip
        self.mlp_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        self.mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)

    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        y, cache = self.attention(self.attention_norm(x), cache, batch, rope)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), cache


class Qwen3(Decoder):
    def __init__(self, config: Qwen3Config, dtype: jnp.dtype) -> None:
        blocks = [Block(config, window, dtype) for window in config.windows]
        super().__init__(config, blocks, RmsNorm(config.hidden_size, eps=config.norm_eps), dtype)
