"""Tensor names of Gemma 1. In GGUF files the gains are whole."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, QKV, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture, Plus

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(name="gemma", architecture="GemmaForCausalLM", constants={"model_type": "gemma"})

RULES = (
    *ENDS,
    *QKV,
    *ATTENTION_OUTPUT,
    *GATED_MLP,
    *modules("layers.{i}.attention_norm", (Plus("input_layernorm", 1),), ("attn_norm",)),
    *modules("layers.{i}.mlp_norm", (Plus("post_attention_layernorm", 1),), ("ffn_norm",)),
    *modules("norm", (Plus("model.norm", 1),), ("output_norm",)),
)
