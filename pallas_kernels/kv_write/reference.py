"""The operation in XLA operations: what runs on CPUs and on GPUs without a kernel, and what the kernel is held to."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from pallas_kernels.kv_write.pages import LARGEST, KvPages

__all__ = ["SMALLEST_PEAK", "quantize", "rotate", "rotate_and_write"]

#: Largest absolute value below which a head counts as zero: its scale, and one over its scale, stay normal numbers.
SMALLEST_PEAK = 2.0**-100


def rotate_and_write(
    qkv: Float[Array, "T N+2*K H"],
    rope: tuple[Float[Array, "T 1 R/2"], Float[Array, "T 1 R/2"]],
    pages: KvPages,
    page: Int[Array, "T"],
    offset: Int[Array, "T"],
) -> tuple[Float[Array, "T N H"], KvPages]:
    """See :func:`pallas_kernels.kv_write.rotate_and_write`."""
    K = pages.k.shape[1]
    N = qkv.shape[1] - 2 * K
    q, k, v = jnp.split(qkv, (N, N + K), axis=1)
    q, k = rotate(q, rope).astype(qkv.dtype), rotate(k, rope)
    if pages.k_scales is None or pages.v_scales is None:
        k = k.astype(qkv.dtype)
        return q, KvPages(_write(pages.k, k, page, offset), _write(pages.v, v, page, offset))
    (k, k_scale), (v, v_scale) = (quantize(x.astype(jnp.float32), pages.k.dtype) for x in (k, v))
    return q, KvPages(
        _write(pages.k, k, page, offset),
        _write(pages.v, v, page, offset),
        _write(pages.k_scales, k_scale, page, offset),
        _write(pages.v_scales, v_scale, page, offset),
    )


def rotate(
    x: Float[Array, "T N H"], rope: tuple[Float[Array, "T 1 R/2"], Float[Array, "T 1 R/2"]]
) -> Float[Array, "T N H"]:
    """Rotate the pairs (i, i + R/2) of each head, in and to float32; the dimensions from R on stay."""
    cos, sin = rope
    half = cos.shape[-1]
    left, right, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin, rest], axis=-1)


def quantize(x: Float[Array, "T K H"], dtype: Any) -> tuple[Shaped[Array, "T K H"], Float[Array, "T K"]]:
    """As int8 or float8_e4m3fn in units of a scale for each token and head: the largest value becomes 127 or 448.

    Infinities become the largest finite number, and a NaN makes its head NaN, as it makes every logit of the head:
    by the scale, since int8 has no NaN.
    """
    largest = LARGEST[jnp.dtype(dtype)]
    peak = jnp.clip(jnp.abs(x).max(-1), SMALLEST_PEAK, jnp.finfo(jnp.float32).max)
    stored = jnp.clip(x * (largest / peak)[..., None], -largest, largest)
    if jnp.dtype(dtype) == jnp.int8:
        stored = jnp.round(stored)
    return stored.astype(dtype), peak * (1 / largest)


def _write(
    pages: Float[Array, "P K S *H"],
    new: Float[Array, "T K *H"],
    page: Int[Array, "T"],
    offset: Int[Array, "T"],
) -> Float[Array, "P K S *H"]:
    """Token t goes to ``pages[page[t], :, offset[t]]``."""
    new = new.astype(pages.dtype)
    if pages.dtype.itemsize > 1 or pages.dtype == jnp.int8:
        return _scatter(pages, new, page, offset)
    # before a scatter of one-byte floats XLA's CPU backend converts all of the pages to a wider type, and back after it
    return lax.platform_dependent(pages, new, page, offset, cpu=_one_by_one, default=_scatter)


def _scatter(pages: jax.Array, new: jax.Array, page: jax.Array, offset: jax.Array) -> jax.Array:
    return pages.at[page, :, offset].set(new, mode="promise_in_bounds")


def _one_by_one(pages: jax.Array, new: jax.Array, page: jax.Array, offset: jax.Array) -> jax.Array:
    def write(t: jax.Array, pages: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice(pages, new[t, None, :, None], (page[t], 0, offset[t], 0))

    return lax.fori_loop(0, len(page), write, pages)
