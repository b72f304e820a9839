"""GLM-4 of April 2025 (0414): a norm before and after each part, half of each head rotated in neighbouring pairs.

Reference: transformers' Glm4ForCausalLM. Loading reorders queries and keys, so that the rotation is everyone else's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, GatedMlp, RmsNorm, Rope, SandwichBlock

__all__ = ["Glm4", "Glm4Config"]

_DEFAULTS = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1.5625e-7,
    "partial_rotary_factor": 0.5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Glm4Config(DecoderConfig):
    attention_bias: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Glm4Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        sizes = read_sizes(read)
        return Glm4Config(
            **sizes,
            ropes=(Rope.from_config(read.config, sizes["head_dim"], partial=True),) * sizes["num_layers"],
            windows=(None,) * sizes["num_layers"],
            attention_bias=read.flag("attention_bias", True),
        )


class Glm4(Decoder):
    def __init__(self, config: Glm4Config, dtype: jnp.dtype) -> None:
        c = config

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def block() -> SandwichBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=c.attention_bias,
            )  # fmt: skip
            mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)
            return SandwichBlock(norm(), attention, norm(), norm(), mlp, norm())

        super().__init__(c, [block() for _ in range(c.num_layers)], norm(), dtype)
