"""Tensor names of Qwen3.5 with experts, text."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.qwen3_5 import RULES

__all__ = ["RULES"]
