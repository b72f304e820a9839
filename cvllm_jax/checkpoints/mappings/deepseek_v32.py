"""Tensor names of DeepSeek V3.2: those of V3, and those of the indexer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cvllm_jax.checkpoints.mappings import deepseek_v2
from cvllm_jax.checkpoints.mappings.decoder import ENDS, modules
from cvllm_jax.checkpoints.mappings.deepseek_v3 import and_further_layers

__all__ = ["GGUF", "RULES"]


def _derive(config: Mapping[str, Any]) -> Mapping[str, Any]:
    assert deepseek_v2.GGUF.derive is not None
    return {
        **deepseek_v2.GGUF.derive(config),
        "architectures": ["DeepseekV32ForCausalLM"],
        "model_type": "deepseek_v32",
    }


GGUF = replace(
    deepseek_v2.GGUF,
    name="deepseek32",
    architecture="DeepseekV32ForCausalLM",
    variants=(),
    keys={
        **deepseek_v2.GGUF.keys,
        "index_head_dim": "attention.indexer.key_length",
        "index_n_heads": "attention.indexer.head_count",
        "index_topk": "attention.indexer.top_k",
    },
    derive=_derive,
)

_INDEXER = "layers.{i}.attention.indexer."

RULES = (
    *ENDS,
    *and_further_layers(
        (
            *deepseek_v2.LAYERS,
            *modules(_INDEXER + "q", ("self_attn.indexer.wq_b",), ("indexer.attn_q_b",)),
            *modules(_INDEXER + "k", ("self_attn.indexer.wk",), ("indexer.attn_k",)),
            *modules(_INDEXER + "k_norm", ("self_attn.indexer.k_norm",), ("indexer.k_norm",)),
            *modules(_INDEXER + "weights", ("self_attn.indexer.weights_proj",), ("indexer.proj",)),
        )
    ),
)
