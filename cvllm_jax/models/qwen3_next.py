"""Qwen3-Next: three layers with a memory of one matrix a head for each that attends to all, and experts.

Reference: transformers' Qwen3NextForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cvllm_jax.models.cache_groups import CacheGroup
from cvllm_jax.models.config_reading import FULL, ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_experts, read_sizes
from cvllm_jax.models.layers import GatedMlp, Linear, PreNormBlock, RmsNorm, Rope
from cvllm_jax.models.layers.gated_attention import GatedAttention
from cvllm_jax.models.layers.gated_delta_net import GatedDeltaNet
from cvllm_jax.models.layers.moe import Experts, Glu, MoeBlock, MoeMlp, Router
from cvllm_jax.models.qwen2_moe import layers_with_experts
from cvllm_jax.models.recurrent import RecurrentLayers

__all__ = ["HYBRID_DEFAULTS", "Qwen3Next", "Qwen3NextConfig", "read_hybrid"]

#: The kind of layers that do not attend, as ``layer_types`` names it.
LINEAR = "linear_attention"

#: What a ``config.json`` leaves out in all families of this kind.
HYBRID_DEFAULTS = {
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
_DEFAULTS = {
    **HYBRID_DEFAULTS,
    "num_key_value_heads": 2,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3NextConfig(DecoderConfig):
    """Of Qwen3-Next, and of the families that differ from it in numbers and in the order of rows."""

    recurrent: RecurrentLayers
    attention_bias: bool
    by_key_head: bool = True
    has_experts: tuple[bool, ...]
    normalize_weights: bool = True
    shared_hidden: int = 0

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        return (CacheGroup(None, tuple(sorted(set(range(self.num_layers)) - set(self.recurrent.layers)))),)

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Qwen3NextConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        hybrid = read_hybrid(read)
        return Qwen3NextConfig(
            **hybrid,
            experts=read_experts(read, "num_experts"),
            has_experts=layers_with_experts(read, hybrid["num_layers"]),
            normalize_weights=read.flag("norm_topk_prob", True),
            shared_hidden=read.positive("shared_expert_intermediate_size"),
        )


def read_hybrid(read: ConfigReader) -> dict[str, Any]:
    """The fields of a :class:`Qwen3NextConfig` but those of experts."""
    sizes = read_sizes(read)
    layers = sizes["num_layers"]
    interval = read.positive("full_attention_interval", 4)
    kinds = read.layer_types([LINEAR if (layer + 1) % interval else FULL for layer in range(layers)], (LINEAR, FULL))
    if FULL not in kinds:
        read.refuse(f"a model of {layers} layers without one of {FULL} is not supported")
    key_heads, heads = read.positive("linear_num_key_heads"), read.positive("linear_num_value_heads")
    if heads % key_heads:
        read.refuse(f"linear_num_value_heads ({heads}) is no multiple of linear_num_key_heads ({key_heads})")
    return {
        **sizes,
        "ropes": (Rope.from_config(read.config, sizes["head_dim"], partial=True),) * layers,
        "windows": (None,) * layers,
        "attention_bias": read.flag("attention_bias"),
        "recurrent": RecurrentLayers(
            layers=tuple(layer for layer, kind in enumerate(kinds) if kind == LINEAR),
            key_heads=key_heads,
            heads=heads,
            key_dim=read.positive("linear_key_head_dim", most=4096),
            value_dim=read.positive("linear_value_head_dim", most=4096),
            window=read.positive("linear_conv_kernel_dim", most=256),
        ),
    }


class Qwen3Next(Decoder):
    def __init__(self, config: Qwen3NextConfig, dtype: jnp.dtype) -> None:
        c = config

        def norm(width: int = c.hidden_size) -> RmsNorm:
            return RmsNorm(width, eps=c.norm_eps)

        def mlp(hidden: int) -> GatedMlp:
            return GatedMlp(c.hidden_size, hidden, dtype=dtype, activation=c.activation)

        def mixer(layer: int) -> GatedDeltaNet | GatedAttention:
            if layer in c.recurrent.layers:
                return GatedDeltaNet(
                    c.hidden_size, c.recurrent, dtype=dtype, norm_eps=c.norm_eps, activation=c.activation,
                    by_key_head=c.by_key_head,
                )  # fmt: skip
            return GatedAttention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, dtype=dtype,
                bias=c.attention_bias, output_bias=c.attention_bias, q_norm=norm(c.head_dim), k_norm=norm(c.head_dim),
            )  # fmt: skip

        def block(layer: int) -> PreNormBlock | MoeBlock:
            if not c.has_experts[layer]:
                return PreNormBlock(norm(), mixer(layer), norm(), mlp(c.intermediate_size))
            assert c.experts is not None
            moe = MoeMlp(
                Router(c.hidden_size, c.experts.experts, c.experts.chosen, normalize=c.normalize_weights),
                Experts(c.experts, c.hidden_size, dtype=dtype, activation=Glu(c.activation)),
                shared=mlp(c.shared_hidden),
                shared_gate=Linear(c.hidden_size, 1, dtype=dtype, spec=P(None, None)),
            )
            return MoeBlock(norm(), mixer(layer), norm(), moe)

        super().__init__(c, [block(layer) for layer in range(c.num_layers)], norm(), dtype)
