"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: long contexts by a factor for each frequency, and part of a head rotated.

Reference: transformers' Phi3ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, GatedMlp, PreNormBlock, RmsNorm, Rope

__all__ = ["Phi3", "Phi3Config"]

_DEFAULTS = {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phi3Config(DecoderConfig):
    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Phi3Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        sizes = read_sizes(read)
        window = read.positive("sliding_window") if config.get("sliding_window") else None
        rope = Rope.from_config(read.config, sizes["head_dim"], partial=True, supported=("default", "longrope"))
        return Phi3Config(
            **sizes, ropes=(rope,) * sizes["num_layers"], windows=(window,) * sizes["num_layers"]
        )


class Phi3(Decoder):
    def __init__(self, config: Phi3Config, dtype: jnp.dtype) -> None:
        c = config

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def block(window: int | None) -> PreNormBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, dtype=dtype, window=window
            )
            mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)
            return PreNormBlock(norm(), attention, norm(), mlp)

        super().__init__(c, [block(window) for window in c.windows], norm(), dtype)
