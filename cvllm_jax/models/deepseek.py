"""DeepSeek-V2 (arXiv 2405.04434), V3 (2412.19437) and R1: latent attention, and experts chosen by groups.

Reference: transformers' DeepseekV2ForCausalLM and DeepseekV3ForCausalLM. The layers that predict further tokens are
not loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_experts, read_sizes
from cvllm_jax.models.layers import GatedMlp, PreNormBlock, RmsNorm, Rope
from cvllm_jax.models.layers.latent_attention import LatentAttention
from cvllm_jax.models.layers.moe import Experts, Glu, Groups, MoeBlock, MoeMlp, Router

__all__ = [
    "V3_DEFAULTS", "Deepseek", "DeepseekConfig", "DeepseekV2Config", "DeepseekV3Config", "dense_mlp", "latent_options",
    "layers_behind_dense_ones", "mixture", "read_deepseek_v3", "read_groups",
]  # fmt: skip

_V2 = {
    "max_position_embeddings": 2048,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "routed_scaling_factor": 1.0,
    "topk_method": "greedy",
    "v_head_dim": 128,
    "moe_intermediate_size": 1407,
}
#: What a ``config.json`` of V3 leaves out; also of families that are built like it.
V3_DEFAULTS = {
    "max_position_embeddings": 4096,
    "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "v_head_dim": 128,
    "moe_intermediate_size": 2048,
    "rope_interleave": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekConfig(DecoderConfig):
    """The keys' heads are those of the cache: one, of the latent vector and the dimensions that are rotated."""

    attention_bias: bool
    mlp_bias: bool
    plain_dim: int
    """Dimensions of a query that are not rotated."""
    value_dim: int
    rank: int
    query_rank: int | None
    attention_scale: float
    interleaved: bool
    has_experts: tuple[bool, ...]
    shared_hidden: int
    score: Literal["softmax", "sigmoid"]
    normalize_weights: bool
    weight_scale: float
    groups: Groups | None
    correction: bool


class DeepseekV2Config(DeepseekConfig):
    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> DeepseekConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _V2)
        read.require("scoring_func", "softmax")
        read.require("norm_topk_prob", False)  # transformers reads it and does not use it
        methods = ("greedy", "group_limited_greedy")
        method = read.config["topk_method"]
        if method not in methods:
            read.refuse(f"topk_method={method!r:.80} is not supported; {' and '.join(methods)} are")
        return DeepseekConfig(
            **_read(read),
            mlp_bias=read.flag("mlp_bias"),
            interleaved=True,
            score="softmax",
            normalize_weights=False,
            groups=read_groups(read, best=1) if method == "group_limited_greedy" else None,
            correction=False,
        )


class DeepseekV3Config(DeepseekConfig):
    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> DeepseekConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        return DeepseekConfig(**read_deepseek_v3(ConfigReader(config, V3_DEFAULTS)))


def read_deepseek_v3(read: ConfigReader) -> dict[str, Any]:
    """The fields of a :class:`DeepseekConfig` of V3 and of what is built like it."""
    read.require("scoring_func", "sigmoid")
    read.require("topk_method", "noaux_tc")
    return {
        **_read(read),
        "mlp_bias": False,
        "interleaved": read.flag("rope_interleave", True),
        "score": "sigmoid",
        "normalize_weights": read.flag("norm_topk_prob", True),
        "groups": read_groups(read, best=2),
        "correction": True,
    }


def _read(read: ConfigReader) -> dict[str, Any]:
    """What both versions have."""
    read.require("pretraining_tp", 1)
    read.require("moe_layer_freq", 1)
    sizes = read_sizes(read)
    rotated, rank, plain = (
        read.positive(key, most=2**20) for key in ("qk_rope_head_dim", "kv_lora_rank", "qk_nope_head_dim")
    )
    rope = Rope.from_config(read.config, rotated)
    return {
        **sizes,
        "num_key_value_heads": 1,
        "head_dim": rotated + rank,
        "shares_values": True,
        "ropes": (rope,) * sizes["num_layers"],
        "windows": (None,) * sizes["num_layers"],
        "experts": read_experts(read, "n_routed_experts"),
        "attention_bias": read.flag("attention_bias"),
        "plain_dim": plain,
        "value_dim": read.positive("v_head_dim"),
        "rank": rank,
        "query_rank": None if read.config["q_lora_rank"] is None else read.positive("q_lora_rank"),
        "attention_scale": (plain + rotated) ** -0.5 * _magnitude(read.config) ** 2,
        "has_experts": layers_behind_dense_ones(read, sizes["num_layers"]),
        "shared_hidden": read.whole("n_shared_experts", 0) * read.positive("moe_intermediate_size"),
        "weight_scale": read.positive_number("routed_scaling_factor"),
    }


def _magnitude(config: Mapping[str, Any]) -> float:
    """What YaRN multiplies queries and keys by, where ``mscale_all_dim`` moves it from the rotation to the scores."""
    options = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if options.get("rope_type", options.get("type", "default")) == "default":
        return 1.0
    read = ConfigReader(options)
    weight, factor = read.number("mscale_all_dim", 0.0), read.number("factor", 1.0)
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def layers_behind_dense_ones(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """Whether each layer has experts: all but the first ``first_k_dense_replace``, or as ``mlp_layer_types`` says."""
    kinds = read.config.get("mlp_layer_types")
    if kinds is None:
        dense = read.whole("first_k_dense_replace", 0)
        return tuple(layer >= dense for layer in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in ("dense", "sparse") for kind in kinds):
        read.refuse(f"mlp_layer_types must be a list of {layers} times 'dense' or 'sparse', not {kinds!r:.80}")
    return tuple(kind == "sparse" for kind in kinds)


def read_groups(read: ConfigReader, best: int) -> Groups:
    """The groups of experts that a token's are chosen from.

    Arguments:
      best: a group is as good as the sum of so many of its best experts.
    """
    experts, count = read.positive("n_routed_experts"), read.positive("n_group")
    chosen, wanted = read.positive("topk_group"), read.positive("num_experts_per_tok")
    if experts % count or chosen > count or experts // count < best or chosen * (experts // count) < wanted:
        read.refuse(f"{wanted} of {experts} experts cannot be chosen from {chosen} of {count} groups")
    return Groups(count, chosen, best)


def latent_options(config: DeepseekConfig, dtype: jnp.dtype) -> dict[str, Any]:
    """The arguments of a layer's attention by name."""
    c = config
    return {
        "plain": c.plain_dim, "rotated": c.head_dim - c.rank, "values": c.value_dim, "rank": c.rank,
        "query_rank": c.query_rank, "scale": c.attention_scale, "dtype": dtype, "bias": c.attention_bias,
        "interleaved": c.interleaved,
    }  # fmt: skip


def dense_mlp(config: DeepseekConfig, hidden: int, dtype: jnp.dtype) -> GatedMlp:
    c = config
    return GatedMlp(c.hidden_size, hidden, dtype=dtype, bias=c.mlp_bias, activation=c.activation)


def mixture(config: DeepseekConfig, dtype: jnp.dtype) -> MoeMlp:
    c = config
    assert c.experts is not None
    router = Router(
        c.hidden_size, c.experts.experts, c.experts.chosen, score=c.score, normalize=c.normalize_weights,
        scale=c.weight_scale, groups=c.groups, correction=c.correction,
    )  # fmt: skip
    routed = Experts(c.experts, c.hidden_size, dtype=dtype, activation=Glu(c.activation))
    return MoeMlp(router, routed, shared=dense_mlp(c, c.shared_hidden, dtype) if c.shared_hidden else None)


class Deepseek(Decoder):
    def __init__(self, config: DeepseekConfig, dtype: jnp.dtype) -> None:
        c = config

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def block(has_experts: bool) -> PreNormBlock | MoeBlock:
            attention = LatentAttention(c.hidden_size, c.num_attention_heads, **latent_options(c, dtype))
            if has_experts:
                return MoeBlock(norm(), attention, norm(), mixture(c, dtype))
            return PreNormBlock(norm(), attention, norm(), dense_mlp(c, c.intermediate_size, dtype))

        super().__init__(c, [block(has_experts) for has_experts in c.has_experts], norm(), dtype)
