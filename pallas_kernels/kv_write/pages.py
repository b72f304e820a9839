"""The cache of one layer, as the operations on it take and return it."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float

__all__ = ["KvPages"]


class KvPages(NamedTuple):
    """Keys and values of one layer in pages; a pytree.

    Attributes:
      k, v: what is stored. In float8_e4m3fn it is in units of the scales.
      k_scales, v_scales: value of one unit, for each token and kv head; None unless the pages are float8_e4m3fn.
    """

    k: Float[Array, "P K S H"]
    v: Float[Array, "P K S H"]
    k_scales: Float[Array, "P K S"] | None = None
    v_scales: Float[Array, "P K S"] | None = None
