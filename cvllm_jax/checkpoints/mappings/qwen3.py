"""Tensor names of Qwen3, dense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, NORMS, QK_NORMS, QKV
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]


def _embedding(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Files that say how vectors are pooled are of embedding models."""
    return {"architectures": ["Qwen3Model"]} if "pooling_type" in config else {}


GGUF = GgufArchitecture(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    variants=("Qwen3Model",),
    constants={"model_type": "qwen3"},
    keys={"pooling_type": "pooling_type"},
    derive=_embedding,
)

RULES = (*ENDS, *QKV, *QK_NORMS, *ATTENTION_OUTPUT, *GATED_MLP, *NORMS)
