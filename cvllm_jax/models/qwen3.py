"""Qwen3, dense: queries and keys are normalised head by head.

Reference: transformers' Qwen3ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, GatedMlp, PreNormBlock, RmsNorm, Rope
from cvllm_jax.models.qwen2 import qwen_windows

__all__ = ["Qwen3", "Qwen3Config", "qwen3_blocks"]

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


def qwen3_blocks(
    config: Qwen3Config, dtype: jnp.dtype, attention_class: type[Attention] = Attention
) -> list[PreNormBlock]:
    """The layers, with attention over the paged cache or inside whole texts."""
    c = config

    def norm(width: int = c.hidden_size) -> RmsNorm:
        return RmsNorm(width, eps=c.norm_eps)

    def block(window: int | None) -> PreNormBlock:
        attention = attention_class(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
            dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias, window=window,
            q_norm=norm(c.head_dim), k_norm=norm(c.head_dim),
        )  # fmt: skip
        mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)
        return PreNormBlock(norm(), attention, norm(), mlp)

    return [block(window) for window in c.windows]


class Qwen3(Decoder):
    def __init__(self, config: Qwen3Config, dtype: jnp.dtype) -> None:
        norm = RmsNorm(config.hidden_size, eps=config.norm_eps)
        super().__init__(config, qwen3_blocks(config, dtype), norm, dtype)
