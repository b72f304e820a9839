"""The cache of one layer, as the operations on it take and return it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["LARGEST", "KvPages", "has_scales"]

#: The types that are stored in units of scales, and the largest number of each.
LARGEST = {jnp.dtype(jnp.int8): 127.0, jnp.dtype(jnp.float8_e4m3fn): 448.0}


def has_scales(dtype: Any) -> bool:
    """Whether pages of this type have scales."""
    return jnp.dtype(dtype) in LARGEST


class KvPages(NamedTuple):
    """Keys and values of one layer in pages; a pytree.

    Attributes:
      k, v: what is stored. In int8 and float8_e4m3fn it is in units of the scales.
      k_scales, v_scales: value of one unit, for each token and kv head; None for other types.
    """

    k: Float[Array, "P K S H"]
    v: Float[Array, "P K S H"]
    k_scales: Float[Array, "P K S"] | None = None
    v_scales: Float[Array, "P K S"] | None = None
