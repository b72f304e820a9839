"""Tensor names of GLM-5: those of DeepSeek V3.2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cvllm_jax.checkpoints.mappings import deepseek_v32
from cvllm_jax.checkpoints.mappings.deepseek_v32 import RULES

__all__ = ["GGUF", "RULES"]


def _derive(config: Mapping[str, Any]) -> Mapping[str, Any]:
    assert deepseek_v32.GGUF.derive is not None
    derived = {
        **deepseek_v32.GGUF.derive(config),
        "architectures": ["GlmMoeDsaForCausalLM"],
        "model_type": "glm_moe_dsa",
    }
    kinds = config.get("indexer_types")
    if isinstance(kinds, list):
        derived["indexer_types"] = ["full" if kind else "shared" for kind in kinds[: config["num_hidden_layers"]]]
    return derived


GGUF = replace(
    deepseek_v32.GGUF,
    name="glm-dsa",
    architecture="GlmMoeDsaForCausalLM",
    keys={**deepseek_v32.GGUF.keys, "indexer_types": "attention.indexer.types"},
    derive=_derive,
)
