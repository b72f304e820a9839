"""Tensor names of Qwen3-Embedding, which are those of Qwen3. Its GGUF files are of Qwen3's architecture."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings import qwen3
from cvllm_jax.checkpoints.mappings.decoder import of_base_class

__all__ = ["RULES"]

RULES = of_base_class(qwen3.RULES)
