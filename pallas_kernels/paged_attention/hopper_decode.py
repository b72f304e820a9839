"""Paged decode attention for SM90 GPUs in Pallas Mosaic: flash-decoding over pieces of sequences (arXiv 2311.01282).

The tokens that are attended to are cut into pieces of about equal length, whatever sequence they belong to, so that
one long sequence does not hold the batch. A thread block of one warpgroup attends from the G queries of a kv head to
one piece and writes its running maximum, sum and unnormalised output in float32; a second kernel merges the pieces.
The queries are the first rows of a 64-row tile: decoding waits for memory, not for arithmetic. Nor does it need a
warpgroup for the copies: while one thread block computes, the stages of the other one on its multiprocessor arrive.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.paged_attention import hopper
from pallas_kernels.paged_attention.config import HopperConfig
from pallas_kernels.paged_attention.hopper import COLUMN_LAYOUT, ROW_LAYOUT, ROWS, TILE_LAYOUT, Carry, Ring, Tiles
from pallas_kernels.paged_attention.reference import MASKED

__all__ = ["decode", "plan"]

#: Columns that a thread block merges, and pieces that it reads at a time: few and many, so that reading the pieces of
#: one long sequence takes little longer than reading one.
MERGED_COLUMNS, MERGED_PIECES = 32, 8


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
    config: HopperConfig | None = None,
    interpret: Any = None,
) -> Float[Array, "B 1 N H"]:
    """One query a sequence; see :func:`pallas_kernels.paged_attention.paged_attention`.

    Reads the pages that hold attended positions and no others, and no table entry past them.

    Arguments:
      config: block sizes; None takes the defaults.
      interpret: as ``plgpu.kernel``'s; ``plgpu.InterpretGPUParams()`` runs on a CPU.

    Raises:
      ValueError: the shapes, the types or the config are not among those that the kernel does.
    """
    tiles, config = hopper.check(q, k_pages, v_pages, config), config or HopperConfig()
    B, _, N, H = q.shape
    K, S = k_pages.shape[1:3]
    G = N // K
    lengths = jnp.where(counts > 0, starts + 1, 0).astype(jnp.int32)
    ends, work = plan(lengths, page_size=S, kv_heads=K, window=window, tokens=tiles.tokens, config=config)
    # the group up to a multiple of 8, the height of a shared-memory tile, and the rows of all groups to one of 64
    height = -(-G // 8) * 8
    rows = -(-K * height // ROWS) * ROWS
    grouped = jnp.pad(q.reshape(B, K, G, H), ((0, 0), (0, 0), (0, height - G), (0, 0)))
    partial_results = plgpu.kernel(
        partial(_attend_piece, tiles=tiles, scale=scale, window=window, soft_cap=soft_cap),
        out_type=(
            jax.ShapeDtypeStruct((len(work), rows, H), jnp.float32),
            jax.ShapeDtypeStruct((len(work), rows), jnp.float32),
            jax.ShapeDtypeStruct((len(work), rows), jnp.float32),
        ),
        grid=(K, len(work)),
        grid_names=("head", "piece"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(work, tables.astype(jnp.int32), grouped, (k_pages, v_pages), (k_scales, v_scales))
    if sinks is not None:
        sinks = jnp.pad(sinks.astype(jnp.float32).reshape(K, G), ((0, 0), (0, height - G))).reshape(K * height)
        sinks = jnp.pad(sinks, (0, rows - K * height))
    merged = plgpu.kernel(
        _merge_pieces,
        out_type=jax.ShapeDtypeStruct((B, rows, H), q.dtype),
        grid=(B, rows // ROWS, H // MERGED_COLUMNS),
        grid_names=("row", "tile", "part"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(ends, sinks, *partial_results)
    return merged[:, : K * height].reshape(B, K, height, H)[:, :, :G].reshape(B, 1, N, H)


def plan(
    lengths: Int[Array, "B"], *, page_size: int, kv_heads: int, window: int | None, tokens: int, config: HopperConfig
) -> tuple[Int[Array, "B"], Int[Array, "I 4"]]:
    """Cut the sequences into pieces of about equal length, each of some pipeline steps of ``tokens``.

    Returns:
      ends: of each sequence the piece after its last one; the first one comes after those of the sequence before.
      work: of each piece the sequence, the first page, the number of pipeline steps (0 if unused) and the length.
        I is B + thread_blocks / kv_heads.
    """
    B = len(lengths)
    pages_per_step = tokens // page_size
    low = jnp.zeros_like(lengths) if window is None else jnp.maximum(lengths - window, 0)
    first = low // page_size
    steps = -(-(-(-lengths // page_size) - first) // pages_per_step)
    # sum over b of ceil(steps[b] / longest) <= B + sum(steps) / longest <= B + target: all pieces find a place
    target = max(1, config.thread_blocks // kv_heads)
    longest = jnp.maximum(-(-steps.sum() // target), -(-config.min_tokens // tokens))
    pieces = -(-steps // longest)
    ends = jnp.cumsum(pieces)
    piece = jnp.arange(B + target, dtype=jnp.int32)
    owner = jnp.searchsorted(ends, piece, side="right", method="compare_all").astype(jnp.int32)
    row = jnp.minimum(owner, B - 1)
    index, parts = piece - (ends - pieces)[row], jnp.maximum(pieces[row], 1)
    begin, end = (part * steps[row] // parts for part in (index, index + 1))  # equal parts, not a short last one
    count = jnp.where(owner < B, end - begin, 0)
    work = jnp.stack([row, first[row] + begin * pages_per_step, count, lengths[row]], axis=1)
    return ends.astype(jnp.int32), work.astype(jnp.int32)


class _Memory(NamedTuple):
    """Shared memory. A cache in 8 bits is widened to two buffers beside the stages."""

    queries: Any
    weights: Any
    k: Ring
    v: Ring
    wide: tuple[Any, Any] | None
    queries_ready: Any


def _attend_piece(
    work_ref: Any, tables_ref: Any, q_ref: Any, pools: Any, scales: Any, out_ref: Any, top_ref: Any, total_ref: Any,
    *, tiles: Tiles, scale: float, window: int | None, soft_cap: float | None,
) -> None:  # fmt: skip
    """The kernel: one kv head of one piece."""
    head, piece = lax.axis_index("head"), lax.axis_index("piece")
    (S, H), height, quantized = pools[0].shape[2:], q_ref.shape[2], scales[0] is not None
    arrivals = tiles.tokens // S * (2 if quantized else 1)
    stage = hopper.ring(tiles, H, pools[0].dtype, scaled=quantized, arrivals=arrivals)
    memory = _Memory(
        queries=hopper.swizzled((ROWS, H), q_ref.dtype),
        weights=hopper.swizzled((ROWS, tiles.tokens), q_ref.dtype),
        k=stage,
        v=stage,
        wide=(hopper.swizzled((tiles.tokens, H), q_ref.dtype),) * 2 if quantized else None,
        queries_ready=hopper.barrier(1),
    )
    row, first_page, steps, length = (work_ref[piece, i] for i in range(4))
    walk = partial(
        _walk, tables_ref, q_ref, pools, scales, head, row, first_page, steps, length,
        tiles=tiles, scale=scale, window=window, soft_cap=soft_cap,
    )  # fmt: skip
    top, total, acc = pl.run_scoped(walk, memory)

    def write(out_smem: Any, top_smem: Any, total_smem: Any) -> None:
        for i, part in enumerate(acc):
            out_smem[:, pl.ds(i * part.shape[1], part.shape[1])] = part
        top_smem[...] = top
        total_smem[...] = total
        plgpu.commit_smem()
        rows, used = pl.ds(head * height, height), pl.ds(0, height)
        for smem, ref in ((out_smem, out_ref), (top_smem, top_ref), (total_smem, total_ref)):
            plgpu.copy_smem_to_gmem(smem.at[used], ref.at[piece, rows])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(steps > 0)  # nobody reads what unused pieces write
    def _write() -> None:
        # in the memory of the stages, which nobody reads any more
        statistics = plgpu.SMEM((ROWS,), jnp.float32)
        pl.run_scoped(write, hopper.swizzled((ROWS, H), jnp.float32), statistics, statistics)


def _walk(
    tables_ref: Any, q_ref: Any, pools: Any, pool_scales: Any, head: jax.Array, row: jax.Array, first_page: jax.Array,
    steps: jax.Array, length: jax.Array, memory: _Memory,
    *, tiles: Tiles, scale: float, window: int | None, soft_cap: float | None,
) -> Carry:  # fmt: skip
    """Attend from the queries of a kv head to some steps of a sequence of ``length`` tokens."""
    (T, stages), (S, H), k, v = tiles, pools[0].shape[2:], memory.k, memory.v
    last_page = lax.div(length - 1, S)

    def pages_of(step: jax.Array | int) -> list[jax.Array]:
        # past the end the last page comes again: masked, and the barriers always see one arrival a page
        return [tables_ref[row, jnp.minimum(first_page + step * (T // S) + i, last_page)] for i in range(T // S)]

    fetch_keys = partial(hopper.fetch, pools[0], pool_scales[0], k, head=head)
    fetch_values = partial(hopper.fetch, pools[1], pool_scales[1], v, head=head)

    def step(index: jax.Array, carry: Carry) -> Carry:
        top, total, acc = carry
        slot = lax.rem(index, stages)
        position = first_page * S + index * T
        # read now what the end of the step needs: page numbers are long on their way, too
        more, pages = index + stages < steps, pages_of(index + stages)

        plgpu.barrier_wait(k.ready.at[slot])
        keys, scales = k.pages.at[slot], None
        if memory.wide is not None:
            scales = plgpu.load(k.scales.at[slot], layout=COLUMN_LAYOUT)
            keys = hopper.widen(keys, memory.wide[0])
            plgpu.commit_smem()
        tile, unit = hopper.logits(hopper.matmul(memory.queries, keys.T), scale=scale, soft_cap=soft_cap, scales=scales)
        key = position + plgpu.broadcasted_iota(jnp.int32, (ROWS, T), 1, layout=TILE_LAYOUT)
        seen = key < length if window is None else (key < length) & (key >= length - window)
        weights, shrink, top, total = hopper.soften(tile, unit, seen, top, total)

        plgpu.barrier_wait(v.ready.at[slot])
        values, used = v.pages.at[slot], length - position
        if memory.wide is not None:
            token = plgpu.broadcasted_iota(jnp.int32, (T,), 0, layout=COLUMN_LAYOUT)
            scales = jnp.where(token < used, plgpu.load(v.scales.at[slot], layout=COLUMN_LAYOUT), 0.0)
            weights *= hopper.over_columns(scales, weights.shape)
            values = hopper.widen(values, memory.wide[1])
        hopper.drop(values, used)
        memory.weights[...] = weights.astype(memory.weights.dtype)
        plgpu.commit_smem()  # and all warps are done with the keys, and with stages that were widened

        @pl.when(more)
        def _refill_early() -> None:
            fetch_keys(slot, pages)
            if memory.wide is not None:
                fetch_values(slot, pages)

        acc = hopper.accumulate(acc, shrink, memory.weights, values)
        plgpu.commit_smem()  # all warps are done with the weights and the values
        if memory.wide is None:
            pl.when(more)(partial(fetch_values, slot, pages))
        return top, total, acc

    for index in range(stages):

        @pl.when(index < steps)
        def _fill(index: int = index) -> None:
            pages = pages_of(index)
            fetch_keys(index, pages)
            fetch_values(index, pages)

    @pl.when(steps > 0)
    def _fetch_queries() -> None:
        # the rows below keep what they held: no row's result depends on another's
        plgpu.copy_gmem_to_smem(q_ref.at[row, head], memory.queries.at[pl.ds(0, q_ref.shape[2])], memory.queries_ready)
        plgpu.barrier_wait(memory.queries_ready)

    return lax.fori_loop(0, steps, step, hopper.initial(H))


def _merge_pieces(ends_ref: Any, sinks_ref: Any, out_ref: Any, top_ref: Any, total_ref: Any, merged_ref: Any) -> None:
    """The kernel that makes one softmax of a sequence's pieces: some columns of 64 rows, whichever head they are of."""
    row, rows = lax.axis_index("row"), pl.ds(lax.axis_index("tile") * ROWS, ROWS)
    columns = pl.ds(lax.axis_index("part") * MERGED_COLUMNS, MERGED_COLUMNS)
    end = ends_ref[row]
    begin = jnp.where(row > 0, ends_ref[jnp.maximum(row - 1, 0)], 0)

    def read(ref: Any, layout: Any) -> jax.Array:
        return plgpu.load(ref, layout=layout, optimized=False)  # straight from global memory, once

    def step(index: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, acc = carry
        places = [begin + index * MERGED_PIECES + i for i in range(MERGED_PIECES)]
        pieces = [jnp.minimum(place, end - 1) for place in places]
        # a last piece that comes again weighs nothing
        tops = [
            read(top_ref.at[piece, rows], ROW_LAYOUT) + jnp.where(place < end, 0.0, MASKED)
            for place, piece in zip(places, pieces, strict=True)
        ]
        totals = [read(total_ref.at[piece, rows], ROW_LAYOUT) for piece in pieces]
        outs = [read(out_ref.at[piece, rows, columns], TILE_LAYOUT) for piece in pieces]
        new_top = reduce(jnp.maximum, tops, top)
        shrink = jnp.exp2(top - new_top)
        total, acc = total * shrink, acc * hopper.over_rows(shrink, acc.shape)
        for one_top, one_total, out in zip(tops, totals, outs, strict=True):
            weight = jnp.exp2(one_top - new_top)
            total, acc = total + weight * one_total, acc + hopper.over_rows(weight, acc.shape) * out
        return new_top, total, acc

    top, total, _ = hopper.initial(64)
    acc = hopper.fill((ROWS, MERGED_COLUMNS), 0, TILE_LAYOUT)
    if sinks_ref is not None:
        top, total = jnp.maximum(read(sinks_ref.at[rows], ROW_LAYOUT) * hopper.LOG2E, MASKED), total + 1
    steps = lax.div(end - begin + MERGED_PIECES - 1, MERGED_PIECES)
    _, total, acc = lax.fori_loop(0, steps, step, (top, total, acc))
    acc *= hopper.over_rows(1 / jnp.maximum(total, 1e-30), acc.shape)

    def write(smem: Any) -> None:
        smem[...] = acc.astype(smem.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(smem, merged_ref.at[row, rows, columns])
        plgpu.wait_smem_to_gmem(0)

    pl.run_scoped(write, hopper.swizzled(acc.shape, merged_ref.dtype))
