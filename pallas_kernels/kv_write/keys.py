"""The write of keys whose values are a part of them."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_write.pages import KvPages
from pallas_kernels.kv_write.reference import _write, quantize, rotate

__all__ = ["rotate_and_write_keys"]


def rotate_and_write_keys(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    rope: tuple[Float[Array, "T 1 R/2"], Float[Array, "T 1 R/2"]],
    pages: KvPages,
    page: Int[Array, "T"],
    offset: Int[Array, "T"],
    beside: Float[Array, "T K I"] | None = None,
) -> tuple[Float[Array, "T N H"], KvPages]:
    """As :func:`pallas_kernels.kv_write.rotate_and_write` for a cache without values, in XLA operations.

    Latent attention (arXiv 2405.04434) reads its values out of its keys; the values' pages are empty and stay so, or
    take what each token has ``beside`` its keys: the key that an indexer looks for (arXiv 2512.02556), as it is.
    """
    q, k = rotate(q, rope).astype(q.dtype), rotate(k, rope)
    if pages.k_scales is None or pages.v_scales is None:
        v = pages.v if beside is None else _write(pages.v, beside, page, offset)
        return q, KvPages(_write(pages.k, k.astype(q.dtype), page, offset), v)
    k, k_scale = quantize(k, pages.k.dtype)
    written = pages._replace(
        k=_write(pages.k, k, page, offset), k_scales=_write(pages.k_scales, k_scale, page, offset)
    )
    if beside is None:
        return q, written
    v, v_scale = quantize(beside.astype(jnp.float32), pages.v.dtype)
    return q, written._replace(
        v=_write(pages.v, v, page, offset), v_scales=_write(pages.v_scales, v_scale, page, offset)
    )
