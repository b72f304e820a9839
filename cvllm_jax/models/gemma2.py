"""Gemma 2 (arXiv 2408.00118): windows on every other layer, soft caps, and a norm before and after each part.

Reference: transformers' Gemma2ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import FULL, SLIDING, ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, GatedMlp, RmsNorm, Rope, SandwichBlock

__all__ = ["Gemma2", "Gemma2Config"]

_DEFAULTS = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma2Config(DecoderConfig):
    attention_bias: bool
    attention_scale: float
    attention_soft_cap: float | None
    logit_soft_cap: float | None

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Gemma2Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        read.require("use_bidirectional_attention", False)
        sizes = read_sizes(read, activation="hidden_activation")
        kinds = read.layer_types([FULL if layer % 2 else SLIDING for layer in range(sizes["num_layers"])])
        return Gemma2Config(
            **sizes,
            ropes=(Rope.from_config(read.config, sizes["head_dim"]),) * sizes["num_layers"],
            windows=tuple(read.positive("sliding_window") if kind == SLIDING else None for kind in kinds),
            attention_bias=read.flag("attention_bias"),
            attention_scale=read.positive_number("query_pre_attn_scalar") ** -0.5,
            attention_soft_cap=read.optional_positive_number("attn_logit_softcapping"),
            logit_soft_cap=read.optional_positive_number("final_logit_softcapping"),
        )


class Gemma2(Decoder):
    def __init__(self, config: Gemma2Config, dtype: jnp.dtype) -> None:
        c = config

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def block(window: int | None) -> SandwichBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias, window=window,
                scale=c.attention_scale, soft_cap=c.attention_soft_cap,
            )  # fmt: skip
            mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)
            return SandwichBlock(norm(), attention, norm(), norm(), mlp, norm())

        super().__init__(
            c, [block(window) for window in c.windows], norm(), dtype,
            embedding_scale=c.hidden_size**0.5, logit_soft_cap=c.logit_soft_cap,
        )  # fmt: skip
