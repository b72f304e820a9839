"""Qwen3-MoE: Qwen3 with experts in all or some layers.

Reference: transformers' Qwen3MoeForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_experts, read_sizes
from cvllm_jax.models.layers import Attention, GatedMlp, PreNormBlock, RmsNorm, Rope
from cvllm_jax.models.layers.moe import Experts, Glu, MoeBlock, MoeMlp, Router
from cvllm_jax.models.qwen2_moe import layers_with_experts

__all__ = ["Qwen3Moe", "Qwen3MoeConfig"]

_DEFAULTS = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3MoeConfig(DecoderConfig):
    attention_bias: bool
    has_experts: tuple[bool, ...]
    normalize_weights: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Qwen3MoeConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        sizes = read_sizes(read)
        window = read.positive("sliding_window", 4096) if read.flag("use_sliding_window") else None
        return Qwen3MoeConfig(
            **sizes,
            ropes=(Rope.from_config(config, sizes["head_dim"]),) * sizes["num_layers"],
            windows=(window,) * sizes["num_layers"],
            experts=read_experts(read, "num_experts"),
            attention_bias=read.flag("attention_bias"),
            has_experts=layers_with_experts(read, sizes["num_layers"]),
            normalize_weights=read.flag("norm_topk_prob"),
        )


class Qwen3Moe(Decoder):
    def __init__(self, config: Qwen3MoeConfig, dtype: jnp.dtype) -> None:
        c = config
        assert c.experts is not None
        experts = c.experts

        def norm(width: int = c.hidden_size) -> RmsNorm:
            return RmsNorm(width, eps=c.norm_eps)

        def block(window: int | None, has_experts: bool) -> PreNormBlock | MoeBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias, window=window,
                q_norm=norm(c.head_dim), k_norm=norm(c.head_dim),
            )  # fmt: skip
            if not has_experts:
                mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)
                return PreNormBlock(norm(), attention, norm(), mlp)
            moe = MoeMlp(
                Router(c.hidden_size, experts.experts, experts.chosen, normalize=c.normalize_weights),
                Experts(experts, c.hidden_size, dtype=dtype, activation=Glu(c.activation)),
            )
            return MoeBlock(norm(), attention, norm(), moe)

        super().__init__(c, [block(*kind) for kind in zip(c.windows, c.has_experts, strict=True)], norm(), dtype)
