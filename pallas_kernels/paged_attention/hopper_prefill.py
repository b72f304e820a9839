"""Paged prefill attention for SM90 GPUs in Pallas Mosaic: blocks of queries, causal over their sequence's pages.

A thread block has three warpgroups. Two compute, each attending from 64 queries of one head; the third one brings
keys and values to rings of stages that both read, so that a page is read once for 128 rows. The two take turns: the
tensor cores multiply for one while the other one is at its softmax (FlashAttention-3, arXiv 2407.08608). Only what
some rows of a warpgroup see and others do not is masked.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.paged_attention import hopper
from pallas_kernels.paged_attention.config import HopperConfig
from pallas_kernels.paged_attention.hopper import COLUMN_LAYOUT, ROWS, TILE_LAYOUT, Carry, Ring, Tiles

__all__ = ["prefill"]

#: Warpgroups that compute; the one after them copies.
COMPUTE = 2

#: Registers of a thread that computes and of one that copies, without and with widening float8 on the way. Three
#: warpgroups start with 168 each: their sum may be 504.
REGISTERS, WIDENING_REGISTERS = (232, 40), (200, 104)


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
    k_scales: Float[Array, "P K S"] | None = None,
    v_scales: Float[Array, "P K S"] | None = None,
    config: HopperConfig | None = None,
    interpret: Any = None,
) -> Float[Array, "B Q N H"]:
    """Blocks of queries; see :func:`pallas_kernels.paged_attention.paged_attention`.

    Reads the pages that hold attended positions and no others, and no table entry past them. Q is best a multiple
    of 64 for an even number of heads a kv head, of 128 otherwise; other blocks are padded.

    Arguments:
      config: block sizes; None takes the defaults.
      interpret: as ``plgpu.kernel``'s; ``plgpu.InterpretGPUParams()`` runs on a CPU.

    Raises:
      ValueError: the shapes, the types or the config are not among those that the kernel does.
    """
    tiles = hopper.check(q, k_pages, v_pages, config)
    B, Q, N = q.shape[:3]
    K = k_pages.shape[1]
    padded = jnp.pad(q, ((0, 0), (0, -Q % ROWS), (0, 0), (0, 0)))
    parts = padded.shape[1] // ROWS * (N // K)
    blocks = jnp.stack([starts, counts], axis=1).astype(jnp.int32)
    kernel = plgpu.kernel(
        partial(_attend, tiles=tiles, scale=scale, window=window, soft_cap=soft_cap),
        out_type=jax.ShapeDtypeStruct(padded.shape, q.dtype),
        # the last axis is the fastest: what shares keys and values runs together
        grid=(B, K, -(-parts // COMPUTE)),
        grid_names=("block", "kv_head", "pair"),
        num_threads=COMPUTE + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    sinks = None if sinks is None else sinks.astype(jnp.float32)
    return kernel(blocks, tables.astype(jnp.int32), sinks, padded, (k_pages, v_pages), (k_scales, v_scales))[:, :Q]


class _Span(NamedTuple):
    """What a thread block attends to: keys and values of a kv head, up to ``end``, in steps from ``first_page`` on."""

    block: jax.Array
    kv_head: jax.Array
    first_page: jax.Array
    begin: jax.Array
    end: jax.Array
    steps: jax.Array


class _Memory(NamedTuple):
    """Shared memory; of keys and values there is a pair. A cache in 8 bits comes to ``stored`` first."""

    queries: Any
    weights: Any
    stages: tuple[Ring, Ring]
    stored: tuple[Ring, Ring] | None
    done: tuple[Any, Any]
    queries_ready: Any
    tail_ready: Any
    turn: Any


def _attend(
    blocks_ref: Any, tables_ref: Any, sinks_ref: Any, q_ref: Any, pools: Any, scales: Any, out_ref: Any,
    *, tiles: Tiles, scale: float, window: int | None, soft_cap: float | None,
) -> None:  # fmt: skip
    """The kernel: two parts of a block, each 64 queries of one head; a kv head's heads come before later queries."""
    # blocks come in the order of their positions: the last ones, which take longest, go first
    block = q_ref.shape[0] - 1 - lax.axis_index("block")
    kv_head, pair, warpgroup = (lax.axis_index(name) for name in ("kv_head", "pair", "warpgroup"))
    S, H = pools[0].shape[2:]
    group = q_ref.shape[2] // pools[0].shape[1]
    start, count = blocks_ref[block, 0], blocks_ref[block, 1]

    # what the two parts see: from the first one's first query to the second one's last
    first, last = (lax.div(COMPUTE * pair + i, group) * ROWS for i in range(COMPUTE))
    low = jnp.int32(0) if window is None else jnp.maximum(start + first - window + 1, 0)
    first_page = lax.div(low, S)
    begin, end = first_page * S, start + jnp.minimum(count, last + ROWS)
    steps = jnp.where(first < count, lax.div(end - begin + tiles.tokens - 1, tiles.tokens), 0)
    span = _Span(block, kv_head, first_page, begin, end, steps)

    def divide(memory: _Memory) -> None:
        computing, copying = REGISTERS if memory.stored is None else WIDENING_REGISTERS

        @pl.when(warpgroup < COMPUTE)
        def _compute() -> None:
            plgpu.set_max_registers(computing, action="increase")
            part = COMPUTE * pair + warpgroup
            query, head = lax.div(part, group) * ROWS, kv_head * group + lax.rem(part, group)
            _compute_part(
                sinks_ref, q_ref, out_ref, memory, span, warpgroup, query, head, start, count,
                tiles=tiles, scale=scale, window=window, soft_cap=soft_cap,
            )  # fmt: skip

        @pl.when(warpgroup == COMPUTE)
        def _bring(bring: Any = _bring_stages if memory.stored is None else _bring_widened) -> None:
            plgpu.set_max_registers(copying, action="decrease")
            bring(tables_ref, pools, scales, memory, span, tiles)

            @pl.loop(jnp.maximum(span.steps - tiles.stages, 0), span.steps)
            def _see(index: jax.Array) -> None:  # the interpreter of JAX 0.11 wants each arrival seen
                for done in memory.done:
                    plgpu.barrier_wait(done.at[lax.rem(index, tiles.stages)])

    quantized, copies = scales[0] is not None, tiles.tokens // S
    stage = hopper.ring(tiles, H, q_ref.dtype, scaled=quantized, arrivals=1 if quantized else copies)
    stored = hopper.ring(tiles, H, pools[0].dtype, scaled=True, arrivals=2 * copies)
    memory = _Memory(
        queries=hopper.swizzled((COMPUTE, ROWS, H), q_ref.dtype),
        weights=hopper.swizzled((COMPUTE, ROWS, tiles.tokens), q_ref.dtype),
        stages=(stage, stage),
        stored=(stored, stored) if quantized else None,
        done=(hopper.barrier(COMPUTE, tiles.stages),) * 2,
        queries_ready=hopper.barrier(1, COMPUTE),
        tail_ready=hopper.barrier(copies),
        turn=hopper.barrier(COMPUTE),
    )
    pl.run_scoped(divide, memory, collective_axes="warpgroup")


def _compute_part(
    sinks_ref: Any, q_ref: Any, out_ref: Any, memory: _Memory, span: _Span, warpgroup: jax.Array,
    query: jax.Array, head: jax.Array, start: jax.Array, count: jax.Array,
    *, tiles: Tiles, scale: float, window: int | None, soft_cap: float | None,
) -> None:  # fmt: skip
    """Attend from 64 queries of one head, in step with the other warpgroup."""
    (T, stages), (Q, H) = tiles, (q_ref.shape[1], q_ref.shape[3])
    k, v = memory.stages
    queries, weights_smem = memory.queries.at[warpgroup], memory.weights.at[warpgroup]
    begin, valid = start + query, jnp.clip(count - query, 0, ROWS)
    steps = jnp.where(valid > 0, lax.div(begin + valid - span.begin + T - 1, T), 0)
    # steps that all rows see: nothing in them is later than the first row, nothing out of the last one's window
    seen_end = jnp.minimum(lax.div(begin + 1 - span.begin, T), steps)
    unseen = jnp.int32(0) if window is None else jnp.maximum(begin + valid - window - span.begin, 0)
    seen_begin = jnp.minimum(lax.div(unseen + T - 1, T), seen_end)

    def turn() -> None:
        plgpu.barrier_arrive(memory.turn.at[0])
        plgpu.barrier_wait(memory.turn.at[0])

    def step(index: jax.Array, carry: Carry, masked: bool) -> Carry:
        top, total, acc = carry
        slot = lax.rem(index, stages)
        plgpu.barrier_wait(k.ready.at[slot])
        scales = None if k.scales is None else plgpu.load(k.scales.at[slot], layout=COLUMN_LAYOUT)
        dots = hopper.matmul(queries, k.pages.at[slot].T, meanwhile=turn)
        plgpu.barrier_arrive(memory.done[0].at[slot])
        tile, unit = hopper.logits(dots, scale=scale, soft_cap=soft_cap, scales=scales)
        seen = None
        if masked:
            row, key = (plgpu.broadcasted_iota(jnp.int32, (ROWS, T), axis, layout=TILE_LAYOUT) for axis in (0, 1))
            behind = begin - span.begin - index * T + row - key
            seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        weights, shrink, top, total = hopper.soften(tile, unit, seen, top, total)
        plgpu.barrier_wait(v.ready.at[slot])
        if v.scales is not None:
            weights *= hopper.over_columns(plgpu.load(v.scales.at[slot], layout=COLUMN_LAYOUT), weights.shape)
        weights_smem[...] = weights.astype(weights_smem.dtype)
        plgpu.commit_smem()
        turn()
        acc = hopper.accumulate(acc, shrink, weights_smem, v.pages.at[slot])
        plgpu.barrier_arrive(memory.done[1].at[slot])
        return top, total, acc

    @pl.when(valid > 0)
    def _fetch_queries(ready: Any = memory.queries_ready.at[warpgroup]) -> None:
        plgpu.copy_gmem_to_smem(q_ref.at[span.block, pl.ds(query, ROWS), head], queries, ready)
        plgpu.barrier_wait(ready)

    pl.when(warpgroup == 1)(turn)  # half a step behind
    carry = hopper.initial(H, None if sinks_ref is None else sinks_ref[head])
    if window is not None:
        carry = lax.fori_loop(0, seen_begin, partial(step, masked=True), carry)
    carry = lax.fori_loop(seen_begin, seen_end, partial(step, masked=False), carry)
    _, total, acc = lax.fori_loop(seen_end, steps, partial(step, masked=True), carry)

    @pl.loop(steps, span.steps)
    def _let_pass(index: jax.Array) -> None:
        slot = lax.rem(index, stages)
        for ring, done in zip(memory.stages, memory.done, strict=True):
            plgpu.barrier_wait(ring.ready.at[slot])  # or two arrivals would free a stage that the other still reads
            plgpu.barrier_arrive(done.at[slot])
            turn()

    pl.when(warpgroup == 0)(turn)

    @pl.when(query < Q)
    def _write() -> None:
        norm = 1 / jnp.maximum(total, 1e-30)
        for i, part in enumerate(acc):
            # padding rows may hold anything, NaN too; the output is finite
            used = plgpu.broadcasted_iota(jnp.int32, part.shape, 0, layout=TILE_LAYOUT) < valid
            out = jnp.where(used, part * hopper.over_rows(norm, part.shape), 0.0)
            queries[:, pl.ds(i * part.shape[1], part.shape[1])] = out.astype(queries.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(queries, out_ref.at[span.block, pl.ds(query, ROWS), head])
        plgpu.wait_smem_to_gmem(0)


def _bring_stages(tables_ref: Any, pools: Any, _: Any, memory: _Memory, span: _Span, tiles: Tiles) -> None:
    """Copy a bfloat16 cache to the stages."""
    values = memory.stages[1]

    def step(index: jax.Array, last: bool = False) -> None:
        slot, pages = lax.rem(index, tiles.stages), _pages(tables_ref, span, pools[0].shape[2], tiles, index)
        for i, ring in enumerate(memory.stages):
            pl.when(index >= tiles.stages)(partial(plgpu.barrier_wait, memory.done[i].at[slot]))
            ready = memory.tail_ready.at[0] if last and i == 1 else ring.ready.at[slot]
            hopper.fetch(pools[i], None, ring, slot, pages, span.kv_head, ready)
        if last:
            plgpu.barrier_wait(memory.tail_ready.at[0])
            hopper.drop(values.pages.at[slot], span.end - span.begin - index * tiles.tokens)
            plgpu.commit_smem()
            for _ in pages:  # in place of the copies
                plgpu.barrier_arrive(values.ready.at[slot])

    pl.loop(0, span.steps - 1)(step)
    pl.when(span.steps > 0)(partial(step, span.steps - 1, last=True))


def _bring_widened(tables_ref: Any, pools: Any, scales: Any, memory: _Memory, span: _Span, tiles: Tiles) -> None:
    """Copy a cache in 8 bits to buffers of its own, and widen it from there to the stages."""
    rings = tuple(zip(memory.stored or (), memory.stages, strict=True))
    pages_of = partial(_pages, tables_ref, span, pools[0].shape[2], tiles)

    @pl.loop(0, jnp.minimum(span.steps, tiles.stages))
    def _fill(index: jax.Array) -> None:
        pages = pages_of(index)
        for i, (stored, _) in enumerate(rings):
            hopper.fetch(pools[i], scales[i], stored, index, pages, span.kv_head)

    @pl.loop(0, span.steps)
    def _step(index: jax.Array) -> None:
        slot, pages = lax.rem(index, tiles.stages), pages_of(index + tiles.stages)
        used = span.end - span.begin - index * tiles.tokens
        for i, (stored, ring) in enumerate(rings):
            pl.when(index >= tiles.stages)(partial(plgpu.barrier_wait, memory.done[i].at[slot]))
            plgpu.barrier_wait(stored.ready.at[slot])
            hopper.widen(stored.pages.at[slot], ring.pages.at[slot])
            if i == 1:
                hopper.drop(ring.pages.at[slot], used)
            token = plgpu.broadcasted_iota(jnp.int32, (tiles.tokens,), 0, layout=COLUMN_LAYOUT)
            ring.scales[slot] = jnp.where(token < used, plgpu.load(stored.scales.at[slot], layout=COLUMN_LAYOUT), 0.0)
            plgpu.commit_smem()
            plgpu.barrier_arrive(ring.ready.at[slot])
            more = partial(hopper.fetch, pools[i], scales[i], stored, slot, pages, span.kv_head)
            pl.when(index + tiles.stages < span.steps)(more)


def _pages(tables_ref: Any, span: _Span, page_size: int, tiles: Tiles, step: jax.Array) -> list[jax.Array]:
    """Page numbers of a step; past the end the last page comes again, so that barriers always see all arrivals."""
    count, last = tiles.tokens // page_size, lax.div(span.end - 1, page_size)
    return [tables_ref[span.block, jnp.minimum(span.first_page + step * count + i, last)] for i in range(count)]
