"""Rotation and write of new keys and values for SM90 GPUs in Pallas Mosaic, into the donated pages.

A thread block of one warpgroup does one token: TMA brings its heads to shared memory, and takes the queries to the
output and the keys and values to the token's place, one copy for the places in all kv heads. What is rotated lies in
shared memory in planes, the left and the right halves of the rotated dimensions and the rest of the head, so that the
pairs to rotate meet in one thread. Not measured yet: where XLA's scatter is as fast, it is to stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_write.pages import LARGEST, KvPages, has_scales
from pallas_kernels.kv_write.reference import SMALLEST_PEAK

__all__ = ["check", "rotate_and_write"]

#: Shared memory that a thread block may have, and what barriers and alignment may take of it.
SHARED_MEMORY, RESERVED = 227 * 1024, 16 * 1024

#: Largest side of a box that TMA copies.
LARGEST_BOX = 256

#: First column and width of each plane.
type Columns = tuple[tuple[int, int], ...]


def check(qkv: Any, rope: tuple[Any, Any], pages: KvPages) -> None:
    """Raise a ValueError that names the limit for arrays of shapes or types that the kernel does not do."""
    T, _, H = qkv.shape
    K, R = pages.k.shape[1], 2 * rope[0].shape[-1]
    N = qkv.shape[1] - 2 * K
    if qkv.dtype != jnp.bfloat16:
        raise ValueError(f"the Hopper kernel writes from bfloat16 only, not from {qkv.dtype}")
    if pages.k.dtype != jnp.bfloat16 and not has_scales(pages.k.dtype):
        raise ValueError(f"the Hopper kernel writes pages of bfloat16, int8 and float8_e4m3fn, not of {pages.k.dtype}")
    if H not in (64, 128, 256):
        raise ValueError(f"the Hopper kernel does head dims 64, 128 and 256, not {H}")
    if R % 32:
        raise ValueError(f"the Hopper kernel rotates a multiple of 32 dimensions, not {R}")
    if max(N, K) > LARGEST_BOX:
        raise ValueError(f"the Hopper kernel does up to {LARGEST_BOX} heads, not {N} query and {K} kv heads")
    if not T:
        raise ValueError("the Hopper kernel writes at least one token, not 0")
    split, whole = _columns(H, R), _columns(H, 0)
    rows = [_padded_rows(heads, columns) for heads, columns in ((N, split), (K, split), (K, whole))]
    needed = H * (2 * sum(rows) + (sum(rows[1:]) if pages.k_scales is not None else 0))
    if needed > SHARED_MEMORY - RESERVED:
        raise ValueError(
            f"{N} query and {K} kv heads of dim {H} need {needed} bytes of shared memory, "
            f"and there are {SHARED_MEMORY - RESERVED}"
        )


def rotate_and_write(
    qkv: Float[Array, "T N+2*K H"],
    rope: tuple[Float[Array, "T 1 R/2"], Float[Array, "T 1 R/2"]],
    pages: KvPages,
    page: Int[Array, "T"],
    offset: Int[Array, "T"],
    *,
    interpret: Any = None,
) -> tuple[Float[Array, "T N H"], KvPages]:
    """See :func:`pallas_kernels.kv_write.rotate_and_write`.

    The pages' buffers are written in place where the caller donates them; otherwise XLA copies them first. Tokens
    that name the same place write it in any order, and their bytes may mix: harmless for padding, whose page nobody
    reads.

    Arguments:
      interpret: as ``plgpu.kernel``'s; ``plgpu.InterpretGPUParams()`` runs on a CPU.

    Raises:
      ValueError: the shapes or the types are not among those that the kernel does.
    """
    check(qkv, rope, pages)
    T, _, H = qkv.shape
    K = pages.k.shape[1]
    N = qkv.shape[1] - 2 * K
    kernel = plgpu.kernel(
        partial(_write_token, quantized=pages.k_scales is not None),
        out_type=jax.ShapeDtypeStruct((T, N, H), qkv.dtype),
        grid=(T,),
        grid_names=("token",),
        interpret=interpret,
    )
    cos, sin = (table.astype(jnp.float32).reshape(T, -1) for table in rope)
    # a kernel's outputs are new buffers, but what it writes through a reference stays where it is
    refs = [jax.new_ref(array) for array in pages if array is not None]
    q = kernel(page.astype(jnp.int32), offset.astype(jnp.int32), cos, sin, qkv, *refs)
    return q, KvPages(*(jax.freeze(ref) for ref in refs))


def _write_token(
    page_ref: Any, offset_ref: Any, cos_ref: Any, sin_ref: Any, qkv_ref: Any, *refs: Any, quantized: bool
) -> None:
    """The kernel: all heads of one token. ``refs`` are those of the pages' arrays and of the queries to return."""
    *pages_refs, q_ref = refs
    token = lax.axis_index("token")
    N, H = q_ref.shape[1:]
    K, half = pages_refs[0].shape[1], cos_ref.shape[1]
    whole, split = _columns(H, 0), _columns(H, 2 * half)

    def fetch(planes: Sequence[Any], columns: Columns, first: int, heads: int, ready: Any) -> None:
        for plane, (begin, width) in zip(planes, columns, strict=True):
            source = qkv_ref.at[token, pl.ds(first, heads), pl.ds(begin, width)]
            plgpu.copy_gmem_to_smem(source, plane.at[pl.ds(0, heads), 0], ready)

    def store(planes: Sequence[Any], columns: Columns, heads: int, target: Any) -> None:
        plgpu.commit_smem()
        for plane, (begin, width) in zip(planes, columns, strict=True):
            plgpu.copy_smem_to_gmem(plane.at[pl.ds(0, heads), 0], target.at[:, pl.ds(begin, width)])

    def load(plane: Any, columns: Columns) -> jax.Array:
        return plgpu.load(plane.at[:, 0], layout=_layout(columns), optimized=False).astype(jnp.float32)

    def rotated(planes: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
        left, right = (load(plane, split) for plane in planes[:2])
        cos, sin = (
            lax.broadcast_in_dim(
                plgpu.load(ref.at[token], layout=_layout(split).reduce(0), optimized=False), left.shape, [1]
            )
            for ref in (cos_ref, sin_ref)
        )
        return left * cos - right * sin, right * cos + left * sin

    def quantize(parts: Sequence[jax.Array], planes: Sequence[Any], scales_smem: Any) -> None:
        peak = reduce(jnp.maximum, (jnp.abs(part).max(axis=1) for part in parts))
        peak = jnp.minimum(jnp.maximum(peak, SMALLEST_PEAK), jnp.finfo(jnp.float32).max)
        dtype = planes[0].dtype
        largest = LARGEST[jnp.dtype(dtype)]
        inverse = largest / peak
        scales_smem[...] = peak * (1 / largest)
        for part, plane in zip(parts, planes, strict=True):
            stored = part * lax.broadcast_in_dim(inverse, part.shape, [0])
            stored = jnp.minimum(jnp.maximum(stored, -largest), largest)
            plane[:, 0] = (jnp.round(stored) if dtype == jnp.int8 else stored).astype(dtype)

    def body(
        q_planes: list[Any], k_planes: list[Any], v_planes: list[Any], q_ready: Any, k_ready: Any, v_ready: Any,
        k_stored: list[Any], v_stored: list[Any], scales: list[Any],
    ) -> None:  # fmt: skip
        fetch(v_planes, whole, N + K, K, v_ready)
        fetch(k_planes, split, N, K, k_ready)
        fetch(q_planes, split, 0, N, q_ready)
        page, offset = page_ref[token], offset_ref[token]
        k_ref, v_ref = (ref.at[page, :, offset] for ref in pages_refs[:2])

        plgpu.barrier_wait(v_ready)
        if quantized:
            quantize([load(plane, whole) for plane in v_planes], v_stored, scales[1])
        store(v_stored or v_planes, whole, K, v_ref)

        plgpu.barrier_wait(k_ready)
        parts = rotated(k_planes)
        if quantized:
            quantize([*parts, *(load(plane, split) for plane in k_planes[2:])], k_stored, scales[0])
        else:
            for part, plane in zip(parts, k_planes, strict=False):
                plane[:, 0] = part.astype(plane.dtype)
        store(k_stored or k_planes, split, K, k_ref)

        plgpu.barrier_wait(q_ready)
        for part, plane in zip(rotated(q_planes), q_planes, strict=False):
            plane[:, 0] = part.astype(plane.dtype)
        store(q_planes, split, N, q_ref.at[token])

        for scales_ref, scales_smem in zip(pages_refs[2:], scales, strict=True):
            for head in range(K):
                scales_ref[page, head, offset] = scales_smem[head]
        plgpu.wait_smem_to_gmem(0)

    def planes(heads: int, columns: Columns, dtype: Any = qkv_ref.dtype) -> list[Any]:
        # the axis of 1 keeps Mosaic from tiling the rows by 8: heads are not always a multiple
        rows = _padded_rows(heads, columns)
        return [plgpu.SMEM((rows, 1, width), dtype) for _, width in columns]

    stored = pages_refs[0].dtype
    pl.run_scoped(
        body,
        planes(N, split),
        planes(K, split),
        planes(K, whole),
        *(plgpu.Barrier(num_arrivals=len(columns)) for columns in (split, split, whole)),
        planes(K, split, stored) if quantized else [],
        planes(K, whole, stored) if quantized else [],
        [plgpu.SMEM((_padded_rows(K, columns),), jnp.float32) for columns in (split, whole)] if quantized else [],
    )


def _columns(head_dim: int, rotary_dim: int) -> Columns:
    """First column and width of each plane."""
    half = rotary_dim // 2
    parts = ((0, half), (half, half), (rotary_dim, head_dim - rotary_dim))
    return tuple(part for part in parts if part[1])


def _tile(columns: Columns) -> tuple[int, int]:
    """Rows and columns that a warp holds two elements a thread of; the columns divide every plane."""
    width = math.gcd(*(width for _, width in columns), 64)
    return 64 // width, width


def _padded_rows(heads: int, columns: Columns) -> int:
    """Rows of a plane: whole tiles for the four warps."""
    rows = 4 * _tile(columns)[0]
    return -(-heads // rows) * rows


def _layout(columns: Columns) -> Any:
    """How registers hold a plane: four tiles below each other, one a warp."""
    rows, width = _tile(columns)
    if rows == 1:
        return plgpu.Layout.TILED(plgpu.Tiling(((4, width), (2,))), warp_dims=(-3,), lane_dims=(-2,), vector_dim=-1)
    tiling = plgpu.Tiling(((4 * rows, width), (rows, width), (2,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1)
