"""Tensor names of Qwen2, Qwen2.5 and QwQ."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, NORMS, QKV
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(name="qwen2", architecture="Qwen2ForCausalLM", constants={"model_type": "qwen2"})

RULES = (*ENDS, *QKV, *ATTENTION_OUTPUT, *GATED_MLP, *NORMS)
