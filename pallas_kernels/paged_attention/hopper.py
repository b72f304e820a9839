"""Paged decode attention for SM90 GPUs in Pallas Mosaic: flash-decoding over pieces of sequences (arXiv 2311.01282).

The tokens that are attended to are cut into pieces of about equal length, whatever sequence they belong to, so that
one long sequence does not hold the batch. A thread block of one warpgroup attends from the G queries of a kv head to
one piece and writes its running maximum, sum and unnormalised output in float32; XLA operations combine the pieces.
The queries are the first rows of a 64-row tile, the smallest that wgmma knows: decoding waits for memory, not for
arithmetic. Keys and values arrive by TMA, a copy a page, in a ring of stages.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.paged_attention.config import HopperConfig
from pallas_kernels.paged_attention.reference import MASKED

__all__ = ["check", "decode", "plan"]

#: Rows of a wgmma tile, of which the queries of a kv head fill the first.
ROWS = 64

#: Columns of an output accumulator: a second one of 256 columns beside the first does not fit into the registers.
COLUMNS = 128

#: Shared memory that a thread block may have, and what barriers and alignment may take of it.
SHARED_MEMORY, RESERVED = 227 * 1024, 2048

_LOG2E = math.log2(math.e)
_TILE = plgpu.Layout.WGMMA
_ROW = plgpu.Layout.WGMMA.reduce(1)


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


def check(q: Any, k_pages: Any, v_pages: Any, config: HopperConfig | None = None) -> HopperConfig:
    """The config to use for arrays of these shapes and types, or a ValueError that names the limit."""
    N, H = q.shape[2:]
    K, S = k_pages.shape[1:3]
    if k_pages.shape != v_pages.shape:
        raise ValueError(f"keys and values must have one shape, not {k_pages.shape} and {v_pages.shape}")
    if k_pages.shape[3] != H:
        raise ValueError(f"queries of head dim {H} cannot attend to keys of head dim {k_pages.shape[3]}")
    for name, array in (("queries", q), ("keys", k_pages), ("values", v_pages)):
        if array.dtype != jnp.bfloat16:
            raise ValueError(f"the Hopper kernel does bfloat16 only, and the {name} are {array.dtype}")
    if q.shape[1] != 1:
        raise ValueError(f"the Hopper kernel decodes one query a sequence, not {q.shape[1]}")
    if H not in (64, 128, 256):
        raise ValueError(f"the Hopper kernel does head dims 64, 128 and 256, not {H}")
    if N % K or N // K > 16:
        raise ValueError(f"the Hopper kernel does 1 to 16 query heads a kv head, not {N} for {K}")
    if S not in (16, 32, 64):
        raise ValueError(f"the Hopper kernel does pages of 16, 32 and 64 tokens, not {S}")
    if config is None:
        config = HopperConfig()
        return replace(config, stages=min(config.stages, _most_stages(config.block_kv, H)))
    if config.stages > (most := _most_stages(config.block_kv, H)):
        raise ValueError(f"shared memory holds {most} stages of {config.block_kv} tokens, not {config.stages}")
    return config


def _most_stages(block_kv: int, head_dim: int) -> int:
    """Pipeline stages, keys and values, that fit into shared memory beside the queries and the weights."""
    return (SHARED_MEMORY - RESERVED - 2 * ROWS * (head_dim + block_kv)) // (4 * block_kv * head_dim)


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
    rows, H = q_ref.shape[2:]
    S = k_ref.shape[2]
    T, stages = config.block_kv, config.stages
    row, first_page, steps, length = (work_ref[piece, i] for i in range(4))
    last_page = lax.div(length - 1, S)
    low = jnp.int32(0) if window is None else jnp.maximum(length - window, 0)

    def attend(
        q_smem: Any, weights_smem: Any, k_smem: Any, v_smem: Any, q_ready: Any, k_ready: Any, v_ready: Any
    ) -> tuple[jax.Array, ...]:
        def fetch(step: jax.Array | int) -> None:
            slot = lax.rem(jnp.int32(step), stages)
            # past the end the last page comes again: masked, and the barriers always see one arrival a page
            pages = [tables_ref[row, jnp.minimum(first_page + step * (T // S) + i, last_page)] for i in range(T // S)]
            for pool, smem, ready in ((k_ref, k_smem, k_ready), (v_ref, v_smem, v_ready)):
                for i, page in enumerate(pages):
                    plgpu.copy_gmem_to_smem(pool.at[page, head], smem.at[slot, pl.ds(i * S, S)], ready.at[slot])

        def step(index: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            top, total, *acc = carry
            slot = lax.rem(index, stages)
            position = first_page * S + index * T

            def scores(acc_ref: Any) -> jax.Array:
                plgpu.wgmma(acc_ref, q_smem, k_smem.at[slot].T)
                return acc_ref[...]

            plgpu.barrier_wait(k_ready.at[slot])
            logits = pl.run_scoped(scores, _accumulator(T)) * scale
            if soft_cap is not None:
                logits = jnp.tanh(logits * (1 / soft_cap)) * soft_cap
            key = position + plgpu.broadcasted_iota(jnp.int32, (ROWS, T), 1, layout=_TILE)
            logits = jnp.where((key < length) & (key >= low), logits * _LOG2E, MASKED)
            new_top = jnp.maximum(top, logits.max(axis=1))
            weights = jnp.exp2(logits - lax.broadcast_in_dim(new_top, (ROWS, T), [0]))
            shrink = jnp.exp2(top - new_top)
            total = total * shrink + weights.sum(axis=1)
            weights_smem[...] = weights.astype(weights_smem.dtype)

            plgpu.barrier_wait(v_ready.at[slot])

            @pl.when((position < low) | (position + T > length))
            def _drop_unseen_values() -> None:
                # what an unused place of a page holds may be anything; 0 * NaN would be NaN
                token = position + plgpu.broadcasted_iota(jnp.int32, (T, H), 0, layout=_TILE)
                values = plgpu.load(v_smem.at[slot], layout=_TILE)
                v_smem[slot] = jnp.where((token < length) & (token >= low), values, jnp.zeros_like(values))

            plgpu.commit_smem()

            def weigh(columns: Any, acc_ref: Any) -> jax.Array:
                plgpu.wgmma(acc_ref, weights_smem, v_smem.at[slot, :, columns])
                return acc_ref[...]

            for i, part in enumerate(acc):
                columns = pl.ds(i * part.shape[1], part.shape[1])
                weighed = pl.run_scoped(partial(weigh, columns), _accumulator(part.shape[1]))
                acc[i] = part * lax.broadcast_in_dim(shrink, part.shape, [0]) + weighed

            plgpu.commit_smem()  # all warps are done with the stage

            @pl.when(index + stages < steps)
            def _refill() -> None:
                fetch(index + stages)

            return new_top, total, *acc

        @pl.when(steps > 0)
        def _fetch_queries() -> None:
            plgpu.copy_gmem_to_smem(q_ref.at[row, head], q_smem.at[pl.ds(0, rows)], q_ready)

        for index in range(stages):
            pl.when(index < steps)(partial(fetch, index))

        @pl.when(steps > 0)
        def _wait_for_queries() -> None:
            plgpu.barrier_wait(q_ready)

        width = min(H, COLUMNS)
        init = (
            plgpu.layout_cast(jnp.full((ROWS,), MASKED, jnp.float32), _ROW),
            plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), _ROW),
            *(plgpu.layout_cast(jnp.zeros((ROWS, width), jnp.float32), _TILE) for _ in range(H // width)),
        )
        return lax.fori_loop(0, steps, step, init)

    queries, weights = (_swizzled((ROWS, width), q_ref.dtype) for width in (H, T))
    stage = _swizzled((stages, T, H), k_ref.dtype)
    ready = plgpu.Barrier(num_arrivals=T // S, num_barriers=stages)
    top, total, *acc = pl.run_scoped(attend, queries, weights, stage, stage, plgpu.Barrier(), ready, ready)

    def write(out_smem: Any) -> None:
        for i, part in enumerate(acc):
            out_smem[:, pl.ds(i * part.shape[1], part.shape[1])] = part
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem.at[pl.ds(0, rows)], out_ref.at[piece, head])
        top_ref[piece, head] = top * (1 / _LOG2E)
        total_ref[piece, head] = total
        plgpu.wait_smem_to_gmem(0)

    # in the memory of the stages, which nobody reads any more
    pl.run_scoped(write, _swizzled((ROWS, H), jnp.float32))


def _accumulator(columns: int) -> Any:
    """A float32 tile of registers that wgmma adds to, zero at first."""
    return plgpu.WGMMAAccumulatorRef((ROWS, columns), jnp.float32)


def _swizzled(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory in the layout that TMA and wgmma agree on: tiles of 8 rows of 128 bytes."""
    tile: Any = plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize))  # type: ignore[abstract]
    swizzle: Any = plgpu.SwizzleTransform(128)  # type: ignore[abstract]
    return plgpu.SMEM(shape, dtype, transforms=(tile, swizzle))
