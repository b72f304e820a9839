"""MiniMax-M2: experts in every layer, scored by a sigmoid, and norms over all queries and all keys of a token.

Reference: transformers' MiniMaxM2ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_experts, read_sizes
from cvllm_jax.models.layers import Attention, RmsNorm, Rope
from cvllm_jax.models.layers.moe import Experts, Glu, MoeBlock, MoeMlp, Router
from cvllm_jax.models.olmo2 import HeadsNorm

__all__ = ["MiniMaxM2", "MiniMaxM2Config"]

_DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 196_608,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniMaxM2Config(DecoderConfig):
    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> MiniMaxM2Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        # said by the published checkpoints, and not asked by transformers, which has one kind of each
        read.require("scoring_func", "sigmoid")
        read.require("use_qk_norm", True)
        read.require("qk_norm_type", "per_layer")
        read.require("use_routing_bias", True)
        read.require("shared_intermediate_size", 0)
        sizes = read_sizes(read)
        layers, head_dim = sizes["num_layers"], sizes["head_dim"]
        read.require("attn_type_list", [1] * layers)
        rope = Rope.from_config(_with_share(read, head_dim), head_dim, theta=5_000_000.0, partial=True)
        return MiniMaxM2Config(
            **sizes,
            ropes=(rope,) * layers,
            windows=(None,) * layers,
            experts=read_experts(read, "num_local_experts", hidden="intermediate_size"),
        )


def _with_share(read: ConfigReader, head_dim: int) -> Mapping[str, Any]:
    """The configuration with the share of a head that is rotated, which checkpoints tell as ``rotary_dim``."""
    if read.config.get("rotary_dim") is None:
        return read.config
    return {"partial_rotary_factor": read.positive("rotary_dim", most=head_dim) / head_dim, **read.config}


class MiniMaxM2(Decoder):
    def __init__(self, config: MiniMaxM2Config, dtype: jnp.dtype) -> None:
        c = config
        assert c.experts is not None
        experts = c.experts

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def block() -> MoeBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, dtype=dtype,
                q_norm=HeadsNorm(c.num_attention_heads * c.head_dim, eps=c.norm_eps),
                k_norm=HeadsNorm(c.num_key_value_heads * c.head_dim, eps=c.norm_eps),
            )  # fmt: skip
            mlp = MoeMlp(
                Router(c.hidden_size, experts.experts, experts.chosen, score="sigmoid", correction=True),
                Experts(experts, c.hidden_size, dtype=dtype, activation=Glu(c.activation)),
            )
            return MoeBlock(norm(), attention, norm(), mlp)

        super().__init__(c, [block() for _ in range(c.num_layers)], norm(), dtype)
