"""Tensor names of DeepSeek V3 and R1: those of V2, and layers behind the last one that predict further tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cvllm_jax.checkpoints.mappings.decoder import ENDS
from cvllm_jax.checkpoints.mappings.deepseek_v2 import LAYERS
from cvllm_jax.checkpoints.mappings.rules import Rule

__all__ = ["RULES", "and_further_layers"]

#: What these layers have beside the parts of the others.
_HF = ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head")
_GGUF = ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head_norm", "shared_head_head")


def and_further_layers(layers: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules of a model's layers, for files with layers behind the last one that predict further tokens."""
    further = Rule(
        target=None,
        hf=tuple(f"model.layers.{{i}}.{name}.weight" for name in _HF),
        gguf=tuple(f"blk.{{i}}.nextn.{name}.weight" for name in _GGUF),
    )
    return (*(replace(rule, may_have_more_layers=True) for rule in layers), further)


RULES = (*ENDS, *and_further_layers(LAYERS))
