"""What the Hopper kernels share: their limits, and the walk of one warpgroup over the pages of a sequence.

Keys and values arrive by TMA, a copy a page, in a ring of stages; the softmax runs in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.paged_attention.config import HopperConfig
from pallas_kernels.paged_attention.reference import MASKED

__all__ = ["LOG2E", "ROWS", "ROW_LAYOUT", "TILE_LAYOUT", "check", "swizzled", "walk_pages"]

#: Rows of a wgmma tile, the smallest there is.
ROWS = 64

#: Logits are in units of ln 2 inside of the kernels: the hardware knows only powers of two.
LOG2E = math.log2(math.e)

#: How registers hold a tile, and a number a row of it.
TILE_LAYOUT = plgpu.Layout.WGMMA
ROW_LAYOUT = plgpu.Layout.WGMMA.reduce(1)

#: Columns of an output accumulator: a second one of 256 columns beside the first does not fit into the registers.
COLUMNS = 128

#: Shared memory that a thread block may have, and what barriers and alignment may take of it.
SHARED_MEMORY, RESERVED = 227 * 1024, 2048


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
            raise ValueError(f"the Hopper kernels do bfloat16 only, and the {name} are {array.dtype}")
    if H not in (64, 128, 256):
        raise ValueError(f"the Hopper kernels do head dims 64, 128 and 256, not {H}")
    if N % K or N // K > 16:
        raise ValueError(f"the Hopper kernels do 1 to 16 query heads a kv head, not {N} for {K}")
    if S not in (16, 32, 64):
        raise ValueError(f"the Hopper kernels do pages of 16, 32 and 64 tokens, not {S}")
    if config is None:
        config = HopperConfig()
        return replace(config, stages=min(config.stages, _most_stages(config.block_kv, H)))
    if config.stages > (most := _most_stages(config.block_kv, H)):
        raise ValueError(f"shared memory holds {most} stages of {config.block_kv} tokens, not {config.stages}")
    return config


def _most_stages(block_kv: int, head_dim: int) -> int:
    """Pipeline stages, keys and values, that fit into shared memory beside the queries and the weights."""
    return (SHARED_MEMORY - RESERVED - 2 * ROWS * (head_dim + block_kv)) // (4 * block_kv * head_dim)


def walk_pages(
    tables_ref: Any,
    k_ref: Any,
    v_ref: Any,
    *,
    row: jax.Array,
    head: jax.Array,
    first_page: jax.Array,
    steps: jax.Array,
    end: jax.Array,
    seen: Callable[[jax.Array], jax.Array],
    copy_queries: Callable[[Any, Any], None],
    sink: jax.Array | None = None,
    config: HopperConfig,
    scale: float,
    soft_cap: float | None,
) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """Attend from 64 queries to a run of pages of one sequence, inside of a kernel of one warpgroup.

    Arguments:
      row: the sequence's row of the tables.
      head: kv head.
      first_page: index into the row.
      steps: pipeline steps of ``block_kv`` tokens; 0 reads nothing.
      end: the sequence's positions from here on hold anything, and their pages are not read.
      seen: whether each row sees the positions of a ``[64, block_kv]`` tile.
      copy_queries: starts the copy of the queries to shared memory, with one arrival at a barrier.
      sink: a logit that every row sees and that has no value.

    Returns:
      Of every row the largest logit in units of ln 2 and the sum of the weights; the unnormalised output, in parts
      of up to 128 columns.
    """
    S, H = k_ref.shape[2:]
    T, stages = config.block_kv, config.stages
    last_page = lax.div(end - 1, S)
    width = min(H, COLUMNS)

    def walk(
        q_smem: Any, weights_smem: Any, k_smem: Any, v_smem: Any, q_ready: Any, k_ready: Any, v_ready: Any
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        def fetch(step: jax.Array | int) -> None:
            slot = lax.rem(jnp.int32(step), stages)
            # past the end the last page comes again: masked, and the barriers always see one arrival a page
            pages = [tables_ref[row, jnp.minimum(first_page + step * (T // S) + i, last_page)] for i in range(T // S)]
            for pool, smem, ready in ((k_ref, k_smem, k_ready), (v_ref, v_smem, v_ready)):
                for i, page in enumerate(pages):
                    plgpu.copy_gmem_to_smem(pool.at[page, head], smem.at[slot, pl.ds(i * S, S)], ready.at[slot])

        def step(
            index: jax.Array, carry: tuple[jax.Array, jax.Array, list[jax.Array]]
        ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
            top, total, acc = carry
            slot = lax.rem(index, stages)
            position = first_page * S + index * T

            def scores(acc_ref: Any) -> jax.Array:
                plgpu.wgmma(acc_ref, q_smem, k_smem.at[slot].T)
                return acc_ref[...]

            plgpu.barrier_wait(k_ready.at[slot])
            logits = pl.run_scoped(scores, _accumulator(T)) * scale
            if soft_cap is not None:
                logits = jnp.tanh(logits * (1 / soft_cap)) * soft_cap
            key = position + plgpu.broadcasted_iota(jnp.int32, (ROWS, T), 1, layout=TILE_LAYOUT)
            logits = jnp.where(seen(key), logits * LOG2E, MASKED)
            new_top = jnp.maximum(top, logits.max(axis=1))
            weights = jnp.exp2(logits - lax.broadcast_in_dim(new_top, (ROWS, T), [0]))
            shrink = jnp.exp2(top - new_top)
            # through shared memory, because the interpreter multiplies nothing from registers
            weights_smem[...] = weights.astype(weights_smem.dtype)

            plgpu.barrier_wait(v_ready.at[slot])

            @pl.when(position + T > end)
            def _drop_unused_values() -> None:
                # what an unused place of a page holds may be anything; 0 * NaN would be NaN
                token = position + plgpu.broadcasted_iota(jnp.int32, (T, H), 0, layout=TILE_LAYOUT)
                values = plgpu.load(v_smem.at[slot], layout=TILE_LAYOUT)
                v_smem[slot] = jnp.where(token < end, values, jnp.zeros_like(values))

            plgpu.commit_smem()

            def weigh(columns: Any, acc_ref: Any) -> jax.Array:
                plgpu.wgmma(acc_ref, weights_smem, v_smem.at[slot, :, columns])
                return acc_ref[...]

            for i, part in enumerate(acc):
                weighed = pl.run_scoped(partial(weigh, pl.ds(i * width, width)), _accumulator(width))
                acc[i] = part * lax.broadcast_in_dim(shrink, part.shape, [0]) + weighed

            plgpu.commit_smem()  # all warps are done with the stage

            @pl.when(index + stages < steps)
            def _refill() -> None:
                fetch(index + stages)

            return new_top, total * shrink + weights.sum(axis=1), acc

        @pl.when(steps > 0)
        def _fetch_queries() -> None:
            copy_queries(q_smem, q_ready)

        for index in range(stages):
            pl.when(index < steps)(partial(fetch, index))

        @pl.when(steps > 0)
        def _wait_for_queries() -> None:
            plgpu.barrier_wait(q_ready)

        def fill(shape: tuple[int, ...], value: Any, layout: Any) -> jax.Array:
            return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)

        top = fill((ROWS,), MASKED if sink is None else sink * LOG2E, ROW_LAYOUT)
        total = fill((ROWS,), 0 if sink is None else 1, ROW_LAYOUT)
        acc = [fill((ROWS, width), 0, TILE_LAYOUT) for _ in range(H // width)]
        return lax.fori_loop(0, steps, step, (top, total, acc))

    queries, weights = (swizzled((ROWS, columns), k_ref.dtype) for columns in (H, T))
    stage = swizzled((stages, T, H), k_ref.dtype)
    ready = plgpu.Barrier(num_arrivals=T // S, num_barriers=stages)
    return pl.run_scoped(walk, queries, weights, stage, stage, plgpu.Barrier(), ready, ready)


def _accumulator(columns: int) -> Any:
    """A float32 tile of registers that wgmma adds to, zero at first."""
    return plgpu.WGMMAAccumulatorRef((ROWS, columns), jnp.float32)


def swizzled(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory in the layout that TMA and wgmma agree on: tiles of 8 rows of 128 bytes."""
    tile: Any = plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize))  # type: ignore[abstract]
    swizzle: Any = plgpu.SwizzleTransform(128)  # type: ignore[abstract]
    return plgpu.SMEM(shape, dtype, transforms=(tile, swizzle))
