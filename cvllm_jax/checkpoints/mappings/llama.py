"""Tensor names of the Llama family (Llama, SmolLM2, Yi, Mistral)."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, INTERLEAVED_QKV, NORMS
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(
    name="llama", architecture="LlamaForCausalLM", constants={"model_type": "llama", "hidden_act": "silu"}
)

RULES = (*ENDS, *INTERLEAVED_QKV, *ATTENTION_OUTPUT, *GATED_MLP, *NORMS)
