"""Tensor names of DeepSeek V3 and R1: those of V2."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.deepseek_v2 import RULES

__all__ = ["RULES"]
