"""The Llama family: Llama 2 to 3.3, SmolLM2, Yi, and Mistral with its sliding window.

Reference: transformers' LlamaForCausalLM and MistralForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, GatedMlp, PreNormBlock, RmsNorm, Rope

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


class Llama(Decoder):
    def __init__(self, config: LlamaConfig, dtype: jnp.dtype) -> None:
        c = config

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def block(window: int | None) -> PreNormBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias, window=window,
            )  # fmt: skip
            mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, bias=c.mlp_bias, activation=c.activation)
            return PreNormBlock(norm(), attention, norm(), mlp)

        super().__init__(c, [block(window) for window in c.windows], norm(), dtype)
