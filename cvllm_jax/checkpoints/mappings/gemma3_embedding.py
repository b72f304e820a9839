"""Tensor names of EmbeddingGemma, which are those of Gemma 3."""

from __future__ import annotations

from dataclasses import replace

from cvllm_jax.checkpoints.dense import GGUF_DENSE
from cvllm_jax.checkpoints.mappings import gemma3
from cvllm_jax.checkpoints.mappings.decoder import of_base_class
from cvllm_jax.checkpoints.mappings.rules import Rule

__all__ = ["GGUF", "RULES"]

GGUF = replace(
    gemma3.GGUF,
    name="gemma-embedding",
    architecture="Gemma3TextModel",
    causal=False,
    constants={**gemma3.GGUF.constants, "use_bidirectional_attention": True},
    keys={**gemma3.GGUF.keys, "pooling_type": "pooling_type"},
)

RULES = (
    *of_base_class(gemma3.RULES),
    # the layers behind the pooling are read with it
    Rule(target=None, gguf=tuple(f"{name}.weight" for name in GGUF_DENSE)),
)
