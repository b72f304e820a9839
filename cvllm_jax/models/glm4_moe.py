"""GLM-4.5, 4.6 and 4.7: experts scored by a sigmoid behind dense layers, and one block that every token goes through.

Reference: transformers' Glm4MoeForCausalLM. The layers that predict further tokens are not loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_experts, read_sizes
from cvllm_jax.models.deepseek import layers_behind_dense_ones, read_groups
from cvllm_jax.models.layers import Attention, GatedMlp, PreNormBlock, RmsNorm, Rope
from cvllm_jax.models.layers.moe import Experts, Glu, Groups, MoeBlock, MoeMlp, Router

__all__ = ["Glm4Moe", "Glm4MoeConfig"]

_DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "first_k_dense_replace": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "moe_intermediate_size": 1408,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Glm4MoeConfig(DecoderConfig):
    attention_bias: bool
    has_head_norms: bool
    has_experts: tuple[bool, ...]
    shared_hidden: int
    normalize_weights: bool
    weight_scale: float
    groups: Groups

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Glm4MoeConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        sizes = read_sizes(read)
        return Glm4MoeConfig(
            **sizes,
            ropes=(Rope.from_config(read.config, sizes["head_dim"], partial=True),) * sizes["num_layers"],
            windows=(None,) * sizes["num_layers"],
            experts=read_experts(read, "n_routed_experts"),
            attention_bias=read.flag("attention_bias"),
            has_head_norms=read.flag("use_qk_norm"),
            has_experts=layers_behind_dense_ones(read, sizes["num_layers"]),
            shared_hidden=read.positive("n_shared_experts") * read.positive("moe_intermediate_size"),
            normalize_weights=read.flag("norm_topk_prob", True),
            weight_scale=read.positive_number("routed_scaling_factor"),
            groups=read_groups(read, best=2),
        )


class Glm4Moe(Decoder):
    def __init__(self, config: Glm4MoeConfig, dtype: jnp.dtype) -> None:
        c = config
        assert c.experts is not None
        experts = c.experts

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def head_norm() -> RmsNorm | None:
            return RmsNorm(c.head_dim, eps=c.norm_eps) if c.has_head_norms else None

        def mlp(hidden: int) -> GatedMlp:
            return GatedMlp(c.hidden_size, hidden, dtype=dtype, activation=c.activation)

        def block(has_experts: bool) -> PreNormBlock | MoeBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=c.attention_bias, q_norm=head_norm(), k_norm=head_norm(),
            )  # fmt: skip
            if not has_experts:
                return PreNormBlock(norm(), attention, norm(), mlp(c.intermediate_size))
            router = Router(
                c.hidden_size, experts.experts, experts.chosen, score="sigmoid", normalize=c.normalize_weights,
                scale=c.weight_scale, groups=c.groups, correction=True,
            )  # fmt: skip
            routed = Experts(experts, c.hidden_size, dtype=dtype, activation=Glu(c.activation))
            return MoeBlock(norm(), attention, norm(), MoeMlp(router, routed, shared=mlp(c.shared_hidden)))

        super().__init__(c, [block(has_experts) for has_experts in c.has_experts], norm(), dtype)
