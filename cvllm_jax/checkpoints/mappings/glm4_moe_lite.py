"""Tensor names of GLM-4.7-Flash: those of DeepSeek V3, as which its GGUF files are read."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.deepseek_v3 import RULES

__all__ = ["RULES"]
