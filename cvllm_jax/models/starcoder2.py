"""StarCoder 2 (arXiv 2402.19173): layer norms, biases and a feed-forward block without a gate.

Reference: transformers' Starcoder2ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, LayerNorm, Mlp, PreNormBlock, Rope

__all__ = ["Starcoder2", "Starcoder2Config"]

_DEFAULTS = {
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Starcoder2Config(DecoderConfig):
    bias: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Starcoder2Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        sizes = read_sizes(read, norm_eps="norm_epsilon")
        window = read.positive("sliding_window") if config.get("sliding_window") else None
        return Starcoder2Config(
            **sizes,
            ropes=(Rope.from_config(read.config, sizes["head_dim"]),) * sizes["num_layers"],
            windows=(window,) * sizes["num_layers"],
            bias=read.flag("use_bias", True),
        )


class Starcoder2(Decoder):
    def __init__(self, config: Starcoder2Config, dtype: jnp.dtype) -> None:
        c = config

        def norm() -> LayerNorm:
            return LayerNorm(c.hidden_size, eps=c.norm_eps)

        def block(window: int | None) -> PreNormBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=c.bias, output_bias=c.bias, window=window,
            )  # fmt: skip
            mlp = Mlp(c.hidden_size, c.intermediate_size, dtype=dtype, bias=c.bias, activation=c.activation)
            return PreNormBlock(norm(), attention, norm(), mlp)

        super().__init__(c, [block(window) for window in c.windows], norm(), dtype)
