"""Phi-1, Phi-1.5 and Phi-2: attention and feed-forward side by side, biases everywhere, half of each head rotated.

Reference: transformers' PhiForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, LayerNorm, Mlp, ParallelBlock, Rope

__all__ = ["Phi", "PhiConfig"]

_DEFAULTS = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class PhiConfig(DecoderConfig):
    qk_norm: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> PhiConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        read.require("tie_word_embeddings", False)  # the head has a bias
        sizes = read_sizes(read, norm_eps="layer_norm_eps")
        return PhiConfig(
            **sizes,
            ropes=(Rope.from_config(read.config, sizes["head_dim"], partial=True),) * sizes["num_layers"],
            windows=(None,) * sizes["num_layers"],
            qk_norm=read.flag("qk_layernorm"),
        )


class Phi(Decoder):
    def __init__(self, config: PhiConfig, dtype: jnp.dtype) -> None:
        c = config

        def norm(width: int = c.hidden_size) -> LayerNorm:
            return LayerNorm(width, eps=c.norm_eps)

        def block() -> ParallelBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=True, output_bias=True,
                q_norm=norm(c.head_dim) if c.qk_norm else None, k_norm=norm(c.head_dim) if c.qk_norm else None,
            )  # fmt: skip
            mlp = Mlp(c.hidden_size, c.intermediate_size, dtype=dtype, bias=True, activation=c.activation)
            return ParallelBlock(norm(), attention, mlp)

        super().__init__(c, [block() for _ in range(c.num_layers)], norm(), dtype, head_bias=True)
