"""Tensor names of Mistral, whose GGUF files call themselves llama."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.llama import RULES

__all__ = ["RULES"]
