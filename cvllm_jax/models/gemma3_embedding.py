"""EmbeddingGemma (arXiv 2509.20354): Gemma 3's layers as an encoder whose tokens see those after them too.

Reference: transformers' Gemma3TextModel, with sentence-transformers' modules after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.gemma3 import Gemma3Config, gemma3_blocks
from cvllm_jax.models.layers import RmsNorm
from cvllm_jax.models.layers.encoder_attention import EncoderAttention
from cvllm_jax.models.text_encoder import TextEncoder

__all__ = ["Gemma3Embedding", "Gemma3EmbeddingConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3EmbeddingConfig(Gemma3Config):
    bidirectional: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Gemma3EmbeddingConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config)
        read.require("is_causal", True)  # transformers would bound the windows in another way
        bidirectional = read.flag("use_bidirectional_attention")
        base = Gemma3Config.from_dict({**config, "use_bidirectional_attention": False})
        # the window that the configuration counts lies half before a token and half after it
        windows = tuple(window // 2 + 1 if window and bidirectional else window for window in base.windows)
        kept = {field.name: getattr(base, field.name) for field in fields(base) if field.name != "windows"}
        return Gemma3EmbeddingConfig(**kept, windows=windows, bidirectional=bidirectional)


class Gemma3Embedding(TextEncoder):
    def __init__(self, config: Gemma3EmbeddingConfig, dtype: jnp.dtype) -> None:
        norm = RmsNorm(config.hidden_size, eps=config.norm_eps)
        super().__init__(
            config, gemma3_blocks(config, dtype, EncoderAttention), norm, dtype,
            bidirectional=config.bidirectional, embedding_scale=config.hidden_size**0.5,
        )  # fmt: skip
