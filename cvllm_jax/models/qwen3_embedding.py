"""Qwen3-Embedding (arXiv 2506.05176): Qwen3's layers as an encoder; a text's vector is that of its last token.

Reference: transformers' Qwen3Model, with sentence-transformers' modules after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.layers import RmsNorm
from cvllm_jax.models.layers.encoder_attention import EncoderAttention
from cvllm_jax.models.qwen3 import Qwen3Config, qwen3_blocks
from cvllm_jax.models.text_encoder import TextEncoder

__all__ = ["Qwen3Embedding", "Qwen3EmbeddingConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3EmbeddingConfig(Qwen3Config):
    bidirectional: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Qwen3EmbeddingConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        base = Qwen3Config.from_dict(config)
        bidirectional = not ConfigReader(config).flag("is_causal", True)
        # of both sides, transformers counts a window without the token itself
        windows = tuple(window + 1 if window and bidirectional else window for window in base.windows)
        kept = {field.name: getattr(base, field.name) for field in fields(base) if field.name != "windows"}
        return Qwen3EmbeddingConfig(**kept, windows=windows, bidirectional=bidirectional)


class Qwen3Embedding(TextEncoder):
    def __init__(self, config: Qwen3EmbeddingConfig, dtype: jnp.dtype) -> None:
        norm = RmsNorm(config.hidden_size, eps=config.norm_eps)
        blocks = qwen3_blocks(config, dtype, EncoderAttention)
        super().__init__(config, blocks, norm, dtype, bidirectional=config.bidirectional)
