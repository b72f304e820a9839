"""Paged prefill attention for SM90 GPUs in Pallas Mosaic: blocks of queries, causal over their sequence's pages.

A thread block of one warpgroup attends from 64 queries of one head to all positions that they see. The heads of a
kv head run side by side, so that its pages come from memory once and from the cache afterwards.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.paged_attention.config import HopperConfig
from pallas_kernels.paged_attention.hopper import ROWS, TILE_LAYOUT, check, swizzled, walk_pages

__all__ = ["prefill"]


def prefill(
    q: Float[Array, "B Q N H"],
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
    config: HopperConfig | None = None,
    interpret: Any = None,
) -> Float[Array, "B Q N H"]:
    """Blocks of queries; see :func:`pallas_kernels.paged_attention.paged_attention`.

    Reads the pages that hold attended positions and no others, and no table entry past them. Q is best a multiple
    of 64; other blocks are padded.

    Arguments:
      config: block sizes; None takes the defaults, with fewer stages where they would not fit.
      interpret: as ``plgpu.kernel``'s; ``plgpu.InterpretGPUParams()`` runs on a CPU.

    Raises:
      ValueError: the shapes, the types or the config are not among those that the kernel does.
    """
    config = check(q, k_pages, v_pages, config)
    B, Q, N = q.shape[:3]
    padded = jnp.pad(q, ((0, 0), (0, -Q % ROWS), (0, 0), (0, 0)))
    blocks = jnp.stack([starts, counts], axis=1).astype(jnp.int32)
    kernel = plgpu.kernel(
        partial(
            _attend_tile, config=config, scale=scale, window=window, soft_cap=soft_cap, has_sinks=sinks is not None
        ),
        out_type=jax.ShapeDtypeStruct(padded.shape, q.dtype),
        grid=(N, padded.shape[1] // ROWS, B),
        grid_names=("head", "tile", "block"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    sinks = jnp.zeros(N, jnp.float32) if sinks is None else sinks.astype(jnp.float32)
    return kernel(blocks, tables.astype(jnp.int32), sinks, padded, k_pages, v_pages)[:, :Q]


def _attend_tile(
    blocks_ref: Any, tables_ref: Any, sinks_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any,
    *, config: HopperConfig, scale: float, window: int | None, soft_cap: float | None, has_sinks: bool,
) -> None:  # fmt: skip
    """The kernel: 64 queries of one head."""
    head, tile, block = (lax.axis_index(name) for name in ("head", "tile", "block"))
    S, H, T = k_ref.shape[2], q_ref.shape[3], config.block_kv
    start, count = blocks_ref[block, 0], blocks_ref[block, 1]
    queries = pl.ds(tile * ROWS, ROWS)
    valid = jnp.clip(count - tile * ROWS, 0, ROWS)
    begin = start + tile * ROWS
    end = begin + valid
    first_page = jnp.int32(0) if window is None else lax.div(jnp.maximum(begin - window + 1, 0), S)
    steps = jnp.where(valid > 0, lax.div(end - first_page * S + T - 1, T), 0)

    def seen(key: jax.Array) -> jax.Array:
        query = begin + plgpu.broadcasted_iota(jnp.int32, key.shape, 0, layout=TILE_LAYOUT)
        return key <= query if window is None else (key <= query) & (key > query - window)

    def copy_queries(q_smem: Any, ready: Any) -> None:
        plgpu.copy_gmem_to_smem(q_ref.at[block, queries, head], q_smem, ready)

    _, total, acc = walk_pages(
        tables_ref, k_ref, v_ref, row=block, head=lax.div(head, q_ref.shape[2] // k_ref.shape[1]),
        first_page=first_page, steps=steps, end=end, seen=seen, copy_queries=copy_queries,
        sink=sinks_ref[head] if has_sinks else None, config=config, scale=scale, soft_cap=soft_cap,
    )  # fmt: skip

    def write(out_smem: Any) -> None:
        norm = 1 / jnp.maximum(total, 1e-30)
        for i, part in enumerate(acc):
            # padding rows may hold anything, NaN too; the output is finite
            used = plgpu.broadcasted_iota(jnp.int32, part.shape, 0, layout=TILE_LAYOUT) < valid
            out = jnp.where(used, part * lax.broadcast_in_dim(norm, part.shape, [0]), 0.0)
            out_smem[:, pl.ds(i * part.shape[1], part.shape[1])] = out.astype(out_smem.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem, out_ref.at[block, queries, head])
        plgpu.wait_smem_to_gmem(0)

    # in the memory of the stages, which nobody reads any more
    pl.run_scoped(write, swizzled((ROWS, H), q_ref.dtype))
