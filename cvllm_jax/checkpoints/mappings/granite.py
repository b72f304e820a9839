"""Tensor names of Granite 3, dense."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, INTERLEAVED_QKV, NORMS
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(
    name="granite",
    architecture="GraniteForCausalLM",
    constants={"model_type": "granite"},
    keys={
        "attention_multiplier": "attention.scale",
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale",
    },
)


RULES = (*ENDS, *INTERLEAVED_QKV, *ATTENTION_OUTPUT, *GATED_MLP, *NORMS)
