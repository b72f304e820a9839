"""The engine that a checkpoint is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cvllm_jax.errors import WrongEngineError

if TYPE_CHECKING:
    from cvllm_jax.config import EngineConfig
    from cvllm_jax.engine.embedding import EmbeddingEngine
    from cvllm_jax.engine.engine import InferenceEngine

__all__ = ["AnyEngine", "open_engine"]

type AnyEngine = InferenceEngine | EmbeddingEngine


def open_engine(config: EngineConfig) -> AnyEngine:
    """An InferenceEngine for a model that generates text, an EmbeddingEngine for an encoder.

    Raises:
      ModelLoadError, TokenizationError, ConfigError, DeviceError: as the engines themselves.
    """
    from cvllm_jax.engine.engine import InferenceEngine

    try:
        return InferenceEngine.new_sync(config)
    except WrongEngineError:  # known before any weight is read
        from cvllm_jax.engine.embedding import EmbeddingEngine

        return EmbeddingEngine.new_sync(config)
