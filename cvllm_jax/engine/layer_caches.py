"""What every layer keeps of sequences: pages of its cache group, or a place for each sequence."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Any

import jax.numpy as jnp

from cvllm_jax.engine.kernels import Geometry, empty_pages
from cvllm_jax.models.cache_groups import group_of_layers
from cvllm_jax.models.recurrent import LayerCache
from cvllm_jax.models.registry import ModelConfig

__all__ = ["empty_caches"]


def empty_caches(
    model: ModelConfig, geometry: Geometry, num_pages: Items[int], slots: int,
    zeros: Callable[..., Any] = jnp.zeros,
) -> tuple[LayerCache, ...]:  # fmt: skip
    """The cache of each layer; ``zeros(shape, dtype)`` makes its arrays.

    Arguments:
      num_pages: of each cache group.
      slots: of recurrent layers, which have no pages.
    """
    if model.recurrent is None:
        return tuple(empty_pages(geometry, num_pages[group], zeros) for group in group_of_layers(model.cache_groups))
    recurrent = model.recurrent
    groups = group_of_layers(model.cache_groups, recurrent.layers)
    return tuple(
        recurrent.empty(slots, geometry.dtype, zeros)
        if layer in recurrent.layers
        else empty_pages(geometry, num_pages[group], zeros)
        for layer, group in enumerate(groups)
    )
