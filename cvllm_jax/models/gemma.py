"""Gemma 1, CodeGemma among it: scaled token vectors and gains that checkpoints store less one.

Reference: transformers' GemmaForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, GatedMlp, PreNormBlock, RmsNorm, Rope

__all__ = ["Gemma", "GemmaConfig"]

_DEFAULTS = {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaConfig(DecoderConfig):
    attention_bias: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> GemmaConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        if config.get("hidden_act") == "gelu":  # the first releases say this and mean its approximation
            config = {**config, "hidden_act": "gelu_pytorch_tanh"}
        read = ConfigReader(config, _DEFAULTS)
        read.require("use_bidirectional_attention", False)
        sizes = read_sizes(read)
        return GemmaConfig(
            **sizes,
            ropes=(Rope.from_config(read.config, sizes["head_dim"]),) * sizes["num_layers"],
            windows=(None,) * sizes["num_layers"],
            attention_bias=read.flag("attention_bias"),
        )


class Gemma(Decoder):
    def __init__(self, config: GemmaConfig, dtype: jnp.dtype) -> None:
        c = config

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def block() -> PreNormBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias,
            )  # fmt: skip
            mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)
            return PreNormBlock(norm(), attention, norm(), mlp)

        super().__init__(c, [block() for _ in range(c.num_layers)], norm(), dtype, embedding_scale=c.hidden_size**0.5)
