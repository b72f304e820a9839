"""Qwen1.5-MoE and Qwen2-MoE: experts in all or some layers, and beside them one that every token goes through.

Reference: transformers' Qwen2MoeForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cvllm_jax.models.config_reading import FULL, SLIDING, ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_experts, read_sizes
from cvllm_jax.models.layers import Attention, GatedMlp, Linear, PreNormBlock, RmsNorm, Rope
from cvllm_jax.models.layers.moe import Experts, Glu, MoeBlock, MoeMlp, Router

__all__ = ["Qwen2Moe", "Qwen2MoeConfig", "layers_with_experts"]

_DEFAULTS = {
    "num_key_value_heads": 16,
    "max_position_embeddings": 32768,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2MoeConfig(DecoderConfig):
    qkv_bias: bool
    has_experts: tuple[bool, ...]
    normalize_weights: bool
    shared_hidden: int

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Qwen2MoeConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        sizes = read_sizes(read)
        return Qwen2MoeConfig(
            **sizes,
            ropes=(Rope.from_config(config, sizes["head_dim"]),) * sizes["num_layers"],
            windows=_windows(read, sizes["num_layers"]),
            experts=read_experts(read, "num_experts"),
            qkv_bias=read.flag("qkv_bias", True),
            has_experts=layers_with_experts(read, sizes["num_layers"]),
            normalize_weights=read.flag("norm_topk_prob"),
            shared_hidden=read.positive("shared_expert_intermediate_size"),
        )


def _windows(read: ConfigReader, layers: int) -> tuple[int | None, ...]:
    """Every other layer of the first so many, unless ``layer_types`` says otherwise."""
    if not read.flag("use_sliding_window"):
        return (None,) * layers
    window, most = read.positive("sliding_window", 4096), read.whole("max_window_layers", 28)
    kinds = read.layer_types([SLIDING if layer % 2 == 0 and layer < most else FULL for layer in range(layers)])
    return tuple(window if kind == SLIDING else None for kind in kinds)


def layers_with_experts(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """Whether each layer has experts, by ``decoder_sparse_step`` and ``mlp_only_layers``."""
    step, dense = read.positive("decoder_sparse_step", 1), read.config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        read.refuse(f"mlp_only_layers must be a list of layers' numbers, not {dense!r:.80}")
    return tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(layers))


class Qwen2Moe(Decoder):
    def __init__(self, config: Qwen2MoeConfig, dtype: jnp.dtype) -> None:
        c = config
        assert c.experts is not None
        experts = c.experts

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def mlp(hidden: int) -> GatedMlp:
            return GatedMlp(c.hidden_size, hidden, dtype=dtype, activation=c.activation)

        def block(window: int | None, has_experts: bool) -> PreNormBlock | MoeBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=c.qkv_bias, window=window,
            )  # fmt: skip
            if not has_experts:
                return PreNormBlock(norm(), attention, norm(), mlp(c.intermediate_size))
            moe = MoeMlp(
                Router(c.hidden_size, experts.experts, experts.chosen, normalize=c.normalize_weights),
                Experts(experts, c.hidden_size, dtype=dtype, activation=Glu(c.activation)),
                shared=mlp(c.shared_hidden),
                shared_gate=Linear(c.hidden_size, 1, dtype=dtype, spec=P(None, None)),
            )
            return MoeBlock(norm(), attention, norm(), moe)

        super().__init__(c, [block(*kind) for kind in zip(c.windows, c.has_experts, strict=True)], norm(), dtype)
