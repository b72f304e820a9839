"""Which layers keep what they remember of a sequence alike, so that the engine keeps it for them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CacheGroup", "cache_groups", "group_of_layers"]


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers whose keys and values are needed equally long: they have pages and a block table of their own."""

    window: int | None
    """The latest positions that they attend to; None for all."""
    layers: tuple[int, ...]


def cache_groups(windows: Sequence[int | None]) -> tuple[CacheGroup, ...]:
    """The layers that attend to all, if there are any, and then those that have windows, kept for the widest of them.

    Arguments:
      windows: of each layer.
    """
    full = tuple(layer for layer, window in enumerate(windows) if window is None)
    windowed = {layer: window for layer, window in enumerate(windows) if window is not None}
    groups = [CacheGroup(None, full)] if full else []
    if windowed:
        groups.append(CacheGroup(max(windowed.values()), tuple(windowed)))
    return tuple(groups)


def group_of_layers(groups: Sequence[CacheGroup], recurrent: Sequence[int] = ()) -> tuple[int, ...]:
    """The index of each layer's group.

    Arguments:
      recurrent: layers without pages; any group tells them where tokens belong, and the first one does.
    """
    index_of = dict.fromkeys(recurrent, 0)
    index_of |= {layer: index for index, group in enumerate(groups) for layer in group.layers}
    return tuple(index_of[layer] for layer in range(len(index_of)))
