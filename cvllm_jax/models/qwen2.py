"""Qwen2, Qwen2.5 and QwQ: biases on queries, keys and values, and a sliding window on the upper layers.

Reference: transformers' Qwen2ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import FULL, SLIDING, ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, GatedMlp, PreNormBlock, RmsNorm, Rope

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


class Qwen2(Decoder):
    def __init__(self, config: Qwen2Config, dtype: jnp.dtype) -> None:
        c = config

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def block(window: int | None) -> PreNormBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=True, window=window,
            )  # fmt: skip
            mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)
            return PreNormBlock(norm(), attention, norm(), mlp)

        super().__init__(c, [block(window) for window in c.windows], norm(), dtype)
