"""Paged decode attention for SM90 GPUs in Pallas Mosaic: flash-decoding over pieces of sequences (arXiv 2311.01282).

The tokens that are attended to are cut into pieces of about equal length, whatever sequence they belong to, so that
one long sequence does not hold the batch. A thread block of one warpgroup attends from the G queries of a kv head to
one piece and writes its running maximum, sum and unnormalised output in float32; XLA operations combine the pieces.
The queries are the first rows of a 64-row tile: decoding waits for memory, not for arithmetic.
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
from pallas_kernels.paged_attention.hopper import LOG2E, ROWS, check, swizzled, walk_pages
from pallas_kernels.paged_attention.reference import MASKED

__all__ = ["decode", "plan"]


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
    config: HopperConfig | None = None,
    interpret: Any = None,
) -> Float[Array, "B 1 N H"]:
    """One query a sequence; see :func:`pallas_kernels.paged_attention.paged_attention`.

    Reads the pages that hold attended positions and no others, and no table entry past them.

    Arguments:
      config: block sizes; None takes the defaults, with fewer stages where they would not fit.
      interpret: as ``plgpu.kernel``'s; ``plgpu.InterpretGPUParams()`` runs on a CPU.

    Raises:
      ValueError: the shapes, the types or the config are not among those that the kernel does.
    """
    config = check(q, k_pages, v_pages, config)
    B, _, N, H = q.shape
    K, S = k_pages.shape[1:3]
    G = N // K
    lengths = jnp.where(counts > 0, starts + 1, 0).astype(jnp.int32)
    owner, work = plan(lengths, page_size=S, kv_heads=K, window=window, config=config)
    # rows up to a multiple of 8, the height of a shared-memory tile
    rows = -(-G // 8) * 8
    grouped = jnp.pad(q.reshape(B, K, G, H), ((0, 0), (0, 0), (0, rows - G), (0, 0)))
    out, top, total = plgpu.kernel(
        partial(_attend_piece, config=config, scale=scale, window=window, soft_cap=soft_cap),
        out_type=(
            jax.ShapeDtypeStruct((len(owner), K, rows, H), jnp.float32),
            jax.ShapeDtypeStruct((len(owner), K, ROWS), jnp.float32),
            jax.ShapeDtypeStruct((len(owner), K, ROWS), jnp.float32),
        ),
        grid=(K, len(owner)),
        grid_names=("head", "piece"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(work, tables.astype(jnp.int32), grouped, k_pages, v_pages)
    sinks = None if sinks is None else sinks.astype(jnp.float32).reshape(K, G)
    combined = _combine(owner, out[:, :, :G], top[..., :G], total[..., :G], B, sinks)
    return combined.astype(q.dtype).reshape(B, 1, N, H)


def plan(
    lengths: Int[Array, "B"], *, page_size: int, kv_heads: int, window: int | None, config: HopperConfig
) -> tuple[Int[Array, "I"], Int[Array, "I 4"]]:
    """Cut the sequences into pieces of about equal length.

    Returns:
      owner: the sequence of each piece, B for pieces that are not used. I is B + thread_blocks / kv_heads.
      work: of each piece the sequence, the first page, the number of pipeline steps (0 if unused) and the length.
    """
    B = len(lengths)
    pages_per_step = config.block_kv // page_size
    low = jnp.zeros_like(lengths) if window is None else jnp.maximum(lengths - window, 0)
    first = low // page_size
    steps = -(-(-(-lengths // page_size) - first) // pages_per_step)
    # sum over b of ceil(steps[b] / longest) <= B + sum(steps) / longest <= B + target: all pieces find a place
    target = max(1, config.thread_blocks // kv_heads)
    longest = jnp.maximum(-(-steps.sum() // target), -(-config.min_tokens // config.block_kv))
    ends = jnp.cumsum(-(-steps // longest))
    piece = jnp.arange(B + target, dtype=jnp.int32)
    owner = jnp.searchsorted(ends, piece, side="right", method="compare_all").astype(jnp.int32)
    row = jnp.minimum(owner, B - 1)
    begin = (piece - jnp.where(row > 0, ends[row - 1], 0)) * longest
    count = jnp.where(owner < B, jnp.clip(steps[row] - begin, 0, longest), 0)
    work = jnp.stack([row, first[row] + begin * pages_per_step, count, lengths[row]], axis=1)
    return owner, work.astype(jnp.int32)


def _combine(
    owner: Int[Array, "I"],
    out: Float[Array, "I K G H"],
    top: Float[Array, "I K G"],
    total: Float[Array, "I K G"],
    B: int,
    sinks: Float[Array, "K G"] | None,
) -> Float[Array, "B K G H"]:
    """Softmax over pieces. A product with a 0-1 matrix, because scatters add in an order that changes between runs."""
    mine = (owner == jnp.arange(B, dtype=jnp.int32)[:, None])[..., None, None]  # [B I 1 1]
    best = jnp.where(mine, top, MASKED).max(1)  # [B K G]
    if sinks is not None:
        best = jnp.maximum(best, sinks)
    weights = jnp.where(mine, jnp.exp(top - best[:, None]), 0.0)
    norm = (weights * total).sum(1)
    if sinks is not None:
        norm += jnp.exp(sinks - best)
    summed = jnp.einsum("bikg,ikgh->bkgh", weights, out, precision=lax.Precision.HIGHEST)
    return summed / jnp.maximum(norm, 1e-30)[..., None]


def _attend_piece(
    work_ref: Any, tables_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, top_ref: Any, total_ref: Any,
    *, config: HopperConfig, scale: float, window: int | None, soft_cap: float | None,
) -> None:  # fmt: skip
    """The kernel: one kv head of one piece."""
    head, piece = lax.axis_index("head"), lax.axis_index("piece")
    row, first_page, steps, length = (work_ref[piece, i] for i in range(4))
    rows = q_ref.shape[2]

    def seen(key: jax.Array) -> jax.Array:
        return key < length if window is None else (key < length) & (key >= length - window)

    def copy_queries(q_smem: Any, ready: Any) -> None:
        # the rows below keep what they held: no row's result depends on another's
        plgpu.copy_gmem_to_smem(q_ref.at[row, head], q_smem.at[pl.ds(0, rows)], ready)

    top, total, acc = walk_pages(
        tables_ref, k_ref, v_ref, row=row, head=head, first_page=first_page, steps=steps, end=length,
        seen=seen, copy_queries=copy_queries, config=config, scale=scale, soft_cap=soft_cap,
    )  # fmt: skip

    def write(out_smem: Any) -> None:
        for i, part in enumerate(acc):
            out_smem[:, pl.ds(i * part.shape[1], part.shape[1])] = part
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem.at[pl.ds(0, rows)], out_ref.at[piece, head])
        top_ref[piece, head] = top * (1 / LOG2E)
        total_ref[piece, head] = total
        plgpu.wait_smem_to_gmem(0)

    # in the memory of the stages, which nobody reads any more
    pl.run_scoped(write, swizzled((ROWS, q_ref.shape[3]), jnp.float32))
