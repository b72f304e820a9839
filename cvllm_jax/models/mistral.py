"""Mistral: the Llama architecture with a sliding window.

Reference: transformers' MistralForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvllm_jax.models.llama import Llama, LlamaConfig

__all__ = ["Mistral", "MistralConfig"]

_DEFAULTS = {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096}

Mistral = Llama


class MistralConfig(LlamaConfig):
    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> LlamaConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        return LlamaConfig.from_dict({**_DEFAULTS, **config})
