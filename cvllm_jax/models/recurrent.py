"""Layers that remember a matrix of each sequence instead of its keys and values: their sizes, and room for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta import RecurrentState

__all__ = ["LayerCache", "RecurrentLayers"]

#: What one layer keeps of all sequences: :class:`KvPages`, or :class:`RecurrentState` where it is recurrent.
type LayerCache = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentLayers:
    """Which layers have no pages, and what each of them remembers of a sequence."""

    layers: tuple[int, ...]
    key_heads: int
    heads: int
    """Of values, in groups that share a key head."""
    key_dim: int
    value_dim: int
    window: int
    """Tokens that the convolution sees."""

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim

    def slot_bytes(self, dtype: Any) -> int:
        """What one sequence takes over all layers; ``dtype`` is that of the convolution's inputs."""
        state = jax.eval_shape(lambda: self.empty(1, dtype))
        return len(self.layers) * sum(math.prod(array.shape) * array.dtype.itemsize for array in state)

    def empty(self, slots: int, dtype: Any, zeros: Callable[..., jax.Array] = jnp.zeros) -> RecurrentState:
        """The state of one layer; ``zeros(shape, dtype)`` makes its arrays."""
        return RecurrentState(
            inputs=zeros((slots, self.window - 1, self.channels), dtype),
            memory=zeros((slots, self.heads, self.key_dim, self.value_dim), jnp.float32),
        )
