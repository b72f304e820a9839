"""The operation in C++ for CPUs (``pallas_kernels/native/kv_write.cc``)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_write.pages import KvPages

__all__ = ["check", "rotate_and_write"]

_FLOATS = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))


def check(qkv: Any, rope: tuple[Any, Any], pages: KvPages) -> None:
    """Raise ValueError, saying what the kernel does, for types that it does not do."""
    if jnp.dtype(qkv.dtype) not in _FLOATS:
        raise ValueError(f"the kernel takes float32 and bfloat16, not {qkv.dtype}")
    if jnp.dtype(pages.k.dtype) not in (*_FLOATS, jnp.dtype(jnp.int8)):
        raise ValueError(f"the kernel writes pages of float32, bfloat16 and int8, not of {pages.k.dtype}")


def rotate_and_write(
    qkv: Float[Array, "T N+2*K H"],
    rope: tuple[Float[Array, "T 1 R/2"], Float[Array, "T 1 R/2"]],
    pages: KvPages,
    page: Int[Array, "T"],
    offset: Int[Array, "T"],
) -> tuple[Float[Array, "T N H"], KvPages]:
    """See :func:`pallas_kernels.kv_write.rotate_and_write`.

    Raises:
      ValueError: the kernel does not do these types.
    """
    check(qkv, rope, pages)
    T, heads, H = qkv.shape
    none = jnp.zeros((0,), jnp.float32)
    stored = [none if x is None else x for x in pages]
    shapes = [jax.ShapeDtypeStruct((T, heads - 2 * pages.k.shape[1], H), qkv.dtype)]
    shapes += [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in stored]
    write = jax.ffi.ffi_call("cvllm_kv_write", shapes, input_output_aliases={5: 1, 6: 2, 7: 3, 8: 4})
    cos, sin = (table.reshape(T, -1) for table in rope)
    q, k, v, k_scales, v_scales = write(qkv, cos, sin, page, offset, *stored)
    return q, KvPages(k, v) if pages.k_scales is None else KvPages(k, v, k_scales, v_scales)
