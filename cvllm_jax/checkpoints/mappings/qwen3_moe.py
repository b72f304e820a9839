"""Tensor names of Qwen3-MoE."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import (
    ATTENTION_OUTPUT,
    ENDS,
    GATED_MLP,
    NORMS,
    QK_NORMS,
    QKV,
    experts,
    modules,
)
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(
    name="qwen3moe",
    architecture="Qwen3MoeForCausalLM",
    experts="num_experts",
    constants={"model_type": "qwen3_moe", "norm_topk_prob": True},
)

RULES = (
    *ENDS,
    *QKV,
    *QK_NORMS,
    *ATTENTION_OUTPUT,
    *GATED_MLP,
    *modules("layers.{i}.mlp.router", ("mlp.gate",), ("ffn_gate_inp",)),
    *experts("mlp.experts.{e}."),
    *NORMS,
)
