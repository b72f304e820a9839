"""The write of keys whose values are a part of them."""

from __future__ import annotations

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
) -> tuple[Float[Array, "T N H"], KvPages]:
    """As :func:`pallas_kernels.kv_write.rotate_and_write` for a cache without values, in XLA operations.

    Latent attention (arXiv 2405.04434) reads its values out of its keys; the values' pages are empty and stay so.
    """
    q, k = rotate(q, rope).astype(q.dtype), rotate(k, rope)
    if pages.k_scales is None:
        return q, pages._replace(k=_write(pages.k, k.astype(q.dtype), page, offset))
    k, scales = quantize(k)
    return q, pages._replace(
        k=_write(pages.k, k, page, offset), k_scales=_write(pages.k_scales, scales, page, offset)
    )
