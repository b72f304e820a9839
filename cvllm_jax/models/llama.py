"""The Llama family: Llama 2 to 3.3, SmolLM2, Yi, and Mistral with its sliding window.

Reference: transformers' LlamaForCausalLM and MistralForCausalLM.
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
from pallas_kernels.kv_write import KvPages

__all__ = ["Llama", "LlamaConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    attention_bias: bool
    mlp_bias: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> LlamaConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config)
        read.require("pretraining_tp", 1)
        sizes = read_sizes(read)
        window = read.positive("sliding_window") if config.get("sliding_window") else None
        return LlamaConfig(
            **sizes,
            ropes=(Rope.from_config(config, sizes["head_dim"]),) * sizes["num_layers"],
            windows=(window,) * sizes["num_layers"],
            attention_bias=read.flag("attention_bias"),
            mlp_bias=read.flag("mlp_bias"),
        )


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with a norm before and a residual around it."""

    def __init__(self, config: LlamaConfig, window: int | None, dtype: jnp.dtype) -> None:
        c = config
        self.attention_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        self.attention = Attention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
            dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias, window=window,
        )  # fmt: skip
        self.mlp_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        self.mlp = GatedMlp(
            c.hidden_size, c.intermediate_size, dtype=dtype, bias=c.mlp_bias, activation=c.activation
        )

    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        y, cache = self.attention(self.attention_norm(x), cache, batch, rope)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), cache


class Llama(Decoder):
    def __init__(self, config: LlamaConfig, dtype: jnp.dtype) -> None:
        blocks = [Block(config, window, dtype) for window in config.windows]
        super().__init__(config, blocks, RmsNorm(config.hidden_size, eps=config.norm_eps), dtype)
