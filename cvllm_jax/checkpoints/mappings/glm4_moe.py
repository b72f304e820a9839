"""Tensor names of GLM-4.5, 4.6 and 4.7."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import (
    ATTENTION_OUTPUT,
    ENDS,
    GATED_MLP,
    QK_NORMS,
    QKV,
    experts,
    modules,
)
from cvllm_jax.checkpoints.mappings.deepseek_v2 import ROUTER, SHARED_EXPERTS
from cvllm_jax.checkpoints.mappings.deepseek_v3 import and_further_layers
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(
    name="glm4moe",
    architecture="Glm4MoeForCausalLM",
    experts="n_routed_experts",
    constants={"model_type": "glm4_moe", "partial_rotary_factor": 1.0, "norm_topk_prob": False},
    keys={
        "first_k_dense_replace": "leading_dense_block_count",
        "n_group": "expert_group_count",
        "n_shared_experts": "expert_shared_count",
        "norm_topk_prob": "expert_weights_norm",
        "routed_scaling_factor": "expert_weights_scale",
        "topk_group": "expert_group_used_count",
    },
    flags={"use_qk_norm": "blk.0.attn_q_norm.weight"},
)

_LAYERS = (
    *QKV,
    *QK_NORMS,
    *ATTENTION_OUTPUT,
    *GATED_MLP,
    *ROUTER,
    *experts("mlp.experts.{e}."),
    *SHARED_EXPERTS,
    *modules("layers.{i}.attention_norm", ("input_layernorm",), ("attn_norm",)),
    *modules("layers.{i}.mlp_norm", ("post_attention_layernorm",), ("post_attention_norm",)),
)

RULES = (*ENDS, *and_further_layers(_LAYERS), *modules("norm", ("model.norm",), ("output_norm",)))
