"""Qwen2, Qwen2.5 and QwQ: biases on queries, keys and values, and a sliding window on the upper layers.

Reference: transformers' Qwen2ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cvllm_jax.models.config_reading import FULL, SLIDING, ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, BlockBatch, GatedMlp, RmsNorm, Rope, RopeTables
from pallas_kernels.kv_write import KvPages

__all__ = ["Qwen2", "Qwen2Config", "qwen_windows"]

_DEFAULTS = {"max_position_embeddings": 32768}


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2Config(DecoderConfig):
    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Qwen2Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        sizes = read_sizes(read)
        return Qwen2Config(
            **sizes,
            ropes=(Rope.from_config(config, sizes["head_dim"]),) * sizes["num_layers"],
            windows=qwen_windows(read, sizes["num_layers"]),
        )


def qwen_windows(read: ConfigReader, layers: int) -> tuple[int | None, ...]:
    """Without ``use_sliding_window`` every layer sees all, whatever the file says of windows."""
    if not read.flag("use_sliding_window"):
        return (None,) * layers
    window, first = read.positive("sliding_window", 4096), read.whole("max_window_layers", 28)
    kinds = read.layer_types([SLIDING if layer >= first else FULL for layer in range(layers)])
    return tuple(window if kind == SLIDING else None for kind in kinds)


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with a norm before and a residual around it."""

    def __init__(self, config: Qwen2Config, window: int | None, dtype: jnp.dtype) -> None:
        c = config
        self.attention_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        self.attention = Attention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
            dtype=dtype, bias=True, window=window,
        )  # fmt: skip
        self.mlp_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        self.mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)

    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        y, cache = self.attention(self.attention_norm(x), cache, batch, rope)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), cache


class Qwen2(Decoder):
    def __init__(self, config: Qwen2Config, dtype: jnp.dtype) -> None:
        blocks = [Block(config, window, dtype) for window in config.windows]
        super().__init__(config, blocks, RmsNorm(config.hidden_size, eps=config.norm_eps), dtype)
