"""Tensor names of SmolLM3."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, INTERLEAVED_QKV, NORMS
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(name="smollm3", architecture="SmolLM3ForCausalLM", constants={"model_type": "smollm3"})


RULES = (*ENDS, *INTERLEAVED_QKV, *ATTENTION_OUTPUT, *GATED_MLP, *NORMS)
