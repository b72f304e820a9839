"""GLM-4 of 2024 (9B): half of each head rotated in neighbouring pairs, as in its successors, and norms before parts.

Reference: transformers' GlmForCausalLM. Loading reorders queries and keys, so that the rotation is everyone else's.
"""

from __future__ import annotations

import jax.numpy as jnp

from cvllm_jax.models.decoder import Decoder
from cvllm_jax.models.glm4 import Glm4Config
from cvllm_jax.models.layers import Attention, GatedMlp, PreNormBlock, RmsNorm

__all__ = ["Glm", "GlmConfig"]

#: Keys and defaults are those of its successor.
GlmConfig = Glm4Config


class Glm(Decoder):
    def __init__(self, config: GlmConfig, dtype: jnp.dtype) -> None:
        c = config

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def block() -> PreNormBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=c.attention_bias,
            )  # fmt: skip
            mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)
            return PreNormBlock(norm(), attention, norm(), mlp)

        super().__init__(c, [block() for _ in range(c.num_layers)], norm(), dtype)
