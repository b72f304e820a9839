"""Tensor names of DeepSeek V3 and R1: those of V2, and layers behind the last one that predict further tokens."""

from __future__ import annotations

from dataclasses import replace

from cvllm_jax.checkpoints.mappings.decoder import ENDS
from cvllm_jax.checkpoints.mappings.deepseek_v2 import LAYERS
from cvllm_jax.checkpoints.mappings.rules import Rule

__all__ = ["RULES"]

#: What these layers have beside the parts of the others.
_FURTHER = ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head")

RULES = (
    *ENDS,
    *(replace(rule, may_have_more_layers=True) for rule in LAYERS),
    Rule(target=None, hf=tuple(f"model.layers.{{i}}.{name}.weight" for name in _FURTHER)),
)
