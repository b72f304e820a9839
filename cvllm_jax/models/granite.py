"""Granite 3, dense: the Llama architecture with four multipliers.

Reference: transformers' GraniteForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, GatedMlp, PreNormBlock, RmsNorm, Rope

__all__ = ["Granite", "GraniteConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraniteConfig(DecoderConfig):
    attention_bias: bool
    mlp_bias: bool
    attention_scale: float
    embedding_scale: float
    residual_scale: float
    logit_scale: float

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> GraniteConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config)
        sizes = read_sizes(read)
        return GraniteConfig(
            **sizes,
            ropes=(Rope.from_config(read.config, sizes["head_dim"]),) * sizes["num_layers"],
            windows=(None,) * sizes["num_layers"],
            attention_bias=read.flag("attention_bias"),
            mlp_bias=read.flag("mlp_bias"),
            attention_scale=read.positive_number("attention_multiplier", 1.0),
            embedding_scale=read.positive_number("embedding_multiplier", 1.0),
            residual_scale=read.positive_number("residual_multiplier", 1.0),
            logit_scale=1 / read.positive_number("logits_scaling", 1.0),
        )


class Granite(Decoder):
    def __init__(self, config: GraniteConfig, dtype: jnp.dtype) -> None:
        c = config

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def block() -> PreNormBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias, scale=c.attention_scale,
            )  # fmt: skip
            mlp = GatedMlp(
                c.hidden_size, c.intermediate_size, dtype=dtype, bias=c.mlp_bias, activation=c.activation
            )
            return PreNormBlock(norm(), attention, norm(), mlp, residual_scale=c.residual_scale)

        super().__init__(
            c, [block() for _ in range(c.num_layers)], norm(), dtype,
            embedding_scale=c.embedding_scale, logit_scale=c.logit_scale,
        )  # fmt: skip
