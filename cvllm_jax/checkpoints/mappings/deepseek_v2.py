"""Tensor names of DeepSeek V2 and V3. Their GGUF files share one architecture, which does not say the version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, NORMS, experts, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture, Rule, Stacked

__all__ = ["GGUF", "LAYERS", "ROUTER", "RULES", "SHARED_EXPERTS"]

_SIGMOID = 2  # of llama.cpp's gating functions


def _derive(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The version, by its gating function, and what the sizes of heads in the file come to."""
    rotated = round(config["head_dim"] * config["partial_rotary_factor"])
    derived: dict[str, Any] = {
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": config["key_length_mla"] - rotated,
        "partial_rotary_factor": None,
        "head_dim": rotated,
        "q_lora_rank": config.get("q_lora_rank"),
    }
    scaling = config.get("rope_scaling") or {}
    if multiplier := config.get("yarn_log_multiplier"):
        weight = round(10 * multiplier, 6)
        derived["rope_scaling"] = {**scaling, "mscale": weight, "mscale_all_dim": weight}
    if config.get("gating_function") == _SIGMOID:
        return derived | {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"}
    grouped = config.get("n_group", 1) > 1
    return derived | {"topk_method": "group_limited_greedy" if grouped else "greedy"}


GGUF = GgufArchitecture(
    name="deepseek2",
    architecture="DeepseekV2ForCausalLM",
    variants=("DeepseekV3ForCausalLM",),
    experts="n_routed_experts",
    constants={"model_type": "deepseek_v2", "norm_topk_prob": False},
    keys={
        "first_k_dense_replace": "leading_dense_block_count",
        "gating_function": "expert_gating_func",
        "key_length_mla": "attention.key_length_mla",
        "kv_lora_rank": "attention.kv_lora_rank",
        "n_group": "expert_group_count",
        "n_shared_experts": "expert_shared_count",
        "norm_topk_prob": "expert_weights_norm",
        "q_lora_rank": "attention.q_lora_rank",
        "routed_scaling_factor": "expert_weights_scale",
        "topk_group": "expert_group_used_count",
        "v_head_dim": "attention.value_length_mla",
        "yarn_log_multiplier": "rope.scaling.yarn_log_multiplier",
    },
    values_in_keys=True,
    derive=_derive,
)

ROUTER = (
    *modules("layers.{i}.mlp.router", ("mlp.gate",), ("ffn_gate_inp",)),
    Rule(
        target="layers.{i}.mlp.router.correction",
        hf=("model.layers.{i}.mlp.gate.e_score_correction_bias",),
        gguf=("blk.{i}.exp_probs_b.bias",),
    ),
)

SHARED_EXPERTS = (
    *modules(
        "layers.{i}.mlp.shared.gate_up",
        ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
        ("ffn_gate_shexp", "ffn_up_shexp"),
    ),
    *modules("layers.{i}.mlp.shared.down", ("mlp.shared_experts.down_proj",), ("ffn_down_shexp",)),
)

_KV_B = "layers.{i}.attention.kv_b"
LAYERS = (
    *modules("layers.{i}.attention.q", ("self_attn.q_b_proj",), ("attn_q_b",)),
    *modules("layers.{i}.attention.q", ("self_attn.q_proj",), ("attn_q",)),
    *modules("layers.{i}.attention.q_a", ("self_attn.q_a_proj",), ("attn_q_a",)),
    *modules("layers.{i}.attention.q_norm", ("self_attn.q_a_layernorm",), ("attn_q_a_norm",)),
    *modules("layers.{i}.attention.kv_a", ("self_attn.kv_a_proj_with_mqa",), ("attn_kv_a_mqa",)),
    *modules("layers.{i}.attention.kv_norm", ("self_attn.kv_a_layernorm",), ("attn_kv_a_norm",)),
    *modules(_KV_B, ("self_attn.kv_b_proj",), (Stacked("attn_k_b", transposed=True), "attn_v_b")),
    *modules(_KV_B, (), ("attn_kv_b",)),  # as older conversions have it
    *ATTENTION_OUTPUT,
    *GATED_MLP,
    *ROUTER,
    *experts("mlp.experts.{e}."),
    *SHARED_EXPERTS,
    *NORMS,
)

RULES = (*ENDS, *LAYERS)
