"""From loading an engine to closing it, the same for every kind of engine."""

from __future__ import annotations

import asyncio
import weakref
from abc import abstractmethod
from typing import Any, Self

from cvllm_jax.closing import AsyncClosing
from cvllm_jax.config import EngineConfig

__all__ = ["EngineLifetime"]


class EngineLifetime(AsyncClosing):
    """Loads in its constructor and frees its memory when it is closed, or dropped."""

    _finalizer: weakref.finalize[..., Any]
    """Set at the end of the constructor; it must not hold the engine."""

    @abstractmethod
    def __init__(self, config: EngineConfig) -> None: ...

    @classmethod
    async def new(cls, config: EngineConfig) -> Self:
        """Load in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(cls, config)

    @classmethod
    def new_sync(cls, config: EngineConfig) -> Self:
        return cls(config)

    load = new
    load_sync = new_sync

    @property
    def warming_up(self) -> bool:
        """Whether a thread still loads steps. Requests are served; large batches are not as fast as they will be."""
        return False

    def close(self) -> None:
        """Cancel what runs and free the model's memory. The engine cannot be used afterwards."""
        self._finalizer()
