"""The public operation: choose an implementation for the shapes and the hardware at hand."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.hardware import Choice, default_device, hopper_refusal
from pallas_kernels.kv_write import native, reference
from pallas_kernels.kv_write.pages import LARGEST, KvPages, has_scales

__all__ = ["Implementation", "choose_implementation", "rotate_and_write"]

Implementation = Literal["auto", "xla", "hopper", "native"]


def rotate_and_write(
    qkv: Float[Array, "T N+2*K H"],
    rope: tuple[Float[Array, "T 1 R/2"], Float[Array, "T 1 R/2"]],
    pages: KvPages,
    page: Int[Array, "T"],
    offset: Int[Array, "T"],
    *,
    implementation: Implementation = "auto",
) -> tuple[Float[Array, "T N H"], KvPages]:
    """Rotate the queries and keys of T tokens (RoFormer, arXiv 2104.09864); write the keys and values of one layer.

    Token t goes to ``[page[t], :, offset[t]]`` of the pages, and everything else in them stays. In place where the
    caller donates the pages.

    Arguments:
      qkv: of each token N query heads, K key heads and K value heads.
      rope: cosine and sine of each token's angles in float32. Of each head the pairs (i, i + R/2) are rotated; the
        dimensions from R on stay (partial rotary embedding).
      pages: with scales, each head of a token is quantised on its own: its largest value becomes 127 units of
        int8, or 448 of float8_e4m3fn. Infinities become the largest finite number, and a NaN makes its head NaN.
      page, offset: each token's place. Padding names a page that nobody reads, and no two other tokens one place.
      implementation: "xla" runs everywhere, "hopper" is for SM90 GPUs, "native" is C++ for CPUs where
        :func:`pallas_kernels.native.load` has succeeded. "auto" is what :func:`choose_implementation` says, and
        "xla" in programs that are compiled for another platform.

    Returns:
      The rotated queries in the type of ``qkv``, and the new pages.

    Raises:
      ValueError: the shapes or types do not belong together, or "hopper" was asked for and does not do them.
    """
    _check(qkv, rope, pages)
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation must be one of {', '.join(get_args(Implementation))}, not {implementation!r}")
    arrays = (qkv, rope, pages, page, offset)
    if implementation == "xla":
        return reference.rotate_and_write(*arrays)
    if implementation == "native":
        return native.rotate_and_write(*arrays)
    if implementation == "auto" and choose_implementation(qkv, rope, pages).implementation == "xla":
        return reference.rotate_and_write(*arrays)

    # importing Mosaic takes time that the XLA path need not spend
    from pallas_kernels.kv_write import hopper

    if implementation == "hopper":
        return hopper.rotate_and_write(*arrays)
    # the default device says what a program will probably run on; this says what it is compiled for
    return lax.platform_dependent(*arrays, cuda=hopper.rotate_and_write, default=reference.rotate_and_write)


def choose_implementation(qkv: Any, rope: tuple[Any, Any], pages: KvPages, *, device: Any = None) -> Choice:
    """What to run for arrays of these shapes and types, and why.

    Arguments:
      qkv, rope, pages: as for :func:`rotate_and_write`; only their shapes and types are looked at.
      device: a ``jax.Device``; None is the default device, as for ``implementation="auto"``.
    """
    if (refusal := hopper_refusal(device or default_device())) is not None:
        return Choice("xla", refusal)

    from pallas_kernels.kv_write import hopper

    try:
        hopper.check(qkv, rope, pages)
    except ValueError as error:
        return Choice("xla", str(error))
    return Choice("hopper", "the GPU has compute capability 9.0 (Hopper), and the kernel does these shapes")


def _check(qkv: Any, rope: tuple[Any, Any], pages: KvPages) -> None:
    """Refuse arrays that do not belong together."""
    T, heads, H = qkv.shape
    K = pages.k.shape[1]
    if heads <= 2 * K:
        raise ValueError(f"{heads} heads are no query heads and 2 x {K} kv heads")
    if pages.k.shape != pages.v.shape or pages.k.dtype != pages.v.dtype:
        raise ValueError(
            "keys and values must have one shape and type, "
            f"not {pages.k.dtype}{list(pages.k.shape)} and {pages.v.dtype}{list(pages.v.shape)}"
        )
    if pages.k.shape[3] != H:
        raise ValueError(f"heads of dim {H} cannot be written to pages of head dim {pages.k.shape[3]}")
    for table in rope:
        if table.shape != rope[0].shape or table.shape[:2] != (T, 1) or not 0 < 2 * table.shape[2] <= H:
            raise ValueError(
                f"cosine and sine of {T} tokens of head dim {H} must have one shape [{T}, 1, R/2] with 0 < R <= {H}, "
                f"not {list(rope[0].shape)} and {list(rope[1].shape)}"
            )
    scaled = has_scales(pages.k.dtype)
    if pages.k.dtype.itemsize == 1 and not scaled:
        raise ValueError(f"quantised pages must be {' or '.join(map(str, LARGEST))}, not {pages.k.dtype}")
    for scales in (pages.k_scales, pages.v_scales):
        if (scales is not None) != scaled:
            raise ValueError(f"pages of {pages.k.dtype} {'need' if scaled else 'have no'} scales")
        if scales is not None and (scales.shape != pages.k.shape[:3] or scales.dtype != jnp.float32):
            raise ValueError(f"scales must be float32{list(pages.k.shape[:3])}, not {scales.dtype}{list(scales.shape)}")
