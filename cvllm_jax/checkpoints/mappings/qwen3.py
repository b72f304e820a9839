"""Tensor names of Qwen3, dense."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, NORMS, QK_NORMS, QKV
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(name="qwen3", architecture="Qwen3ForCausalLM", constants={"model_type": "qwen3"})

RULES = (*ENDS, *QKV, *QK_NORMS, *ATTENTION_OUTPUT, *GATED_MLP, *NORMS)
