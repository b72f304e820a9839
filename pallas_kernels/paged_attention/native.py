"""Decoding in C++ for CPUs (``pallas_kernels/native/attention.cc``)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

__all__ = ["check", "decode"]

_FLOATS = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))


def check(q: Any, k_pages: Any, v_pages: Any) -> None:
    """Raise ValueError, saying what the kernel does, for shapes and types that it does not do."""
    page_size, head_dim = k_pages.shape[2:]
    if page_size % 16 or head_dim % 16:
        raise ValueError(
            f"the kernel wants multiples of 16 for page size and head dim, not {page_size} and {head_dim}"
        )
    if jnp.dtype(q.dtype) not in _FLOATS:
        raise ValueError(f"the kernel takes queries in float32 and bfloat16, not in {q.dtype}")
    if jnp.dtype(k_pages.dtype) not in (*_FLOATS, jnp.dtype(jnp.int8)):
        raise ValueError(f"the kernel reads pages of float32, bfloat16 and int8, not of {k_pages.dtype}")
    if v_pages.shape != k_pages.shape or v_pages.dtype != k_pages.dtype:
        raise ValueError("the kernel wants keys and values of one shape and type")


def decode(
    q: Float[Array, "B 1 N H"],
    k_pages: Float[Array, "P K S H"],
    v_pages: Float[Array, "P K S H"],
    tables: Int[Array, "B W"],
    starts: Int[Array, "B"],
    counts: Int[Array, "B"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, "N"] | None = None,
    k_scales: Float[Array, "P K S"] | None = None,
    v_scales: Float[Array, "P K S"] | None = None,
) -> Float[Array, "B 1 N H"]:
    """One query a sequence; see :func:`pallas_kernels.paged_attention.paged_attention`.

    Raises:
      ValueError: the kernel does not do these shapes or types.
    """
    check(q, k_pages, v_pages)
    none = jnp.zeros((0,), jnp.float32)
    optional = [none if x is None else x.astype(jnp.float32) for x in (k_scales, v_scales, sinks)]
    attend = jax.ffi.ffi_call("cvllm_attention", jax.ShapeDtypeStruct(q.shape, q.dtype))
    return attend(
        q, k_pages, v_pages, tables, starts, counts, *optional,
        scale=np.float32(scale), soft_cap=np.float32(soft_cap or 0), window=np.int64(window or 0),
    )  # fmt: skip
