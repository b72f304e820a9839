"""What the Hopper kernels share: their limits, their use of shared memory, and the arithmetic of one tile.

Keys and values arrive by TMA, a copy a page, in rings of stages; the softmax runs in float32.

A cache of int8 or float8 is widened to bfloat16, exactly, from one buffer of shared memory to another. Multiplying it
as it is stored is not open to us: wgmma on 8-bit types takes operands that are contiguous along the summed dimension,
which values are not, and would want queries and weights in 8 bits too. The scales multiply logits and weights, in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.kv_write.pages import LARGEST
from pallas_kernels.paged_attention.config import HopperConfig
from pallas_kernels.paged_attention.reference import MASKED

__all__ = [
    "COLUMN_LAYOUT", "LOG2E", "ROWS", "ROW_LAYOUT", "TILE_LAYOUT", "Carry", "Ring", "Tiles", "accumulate", "barrier",
    "check", "drop", "fetch", "fill", "initial", "logits", "matmul", "over_columns", "over_rows", "ring", "soften",
    "swizzled", "widen",
]  # fmt: skip

#: Rows of a wgmma tile, the smallest there is.
ROWS = 64

#: Logits are in units of ln 2 inside of the kernels: the hardware knows only powers of two.
LOG2E = math.log2(math.e)

#: How registers hold a tile, and a number a row or a column of it.
TILE_LAYOUT = plgpu.Layout.WGMMA
ROW_LAYOUT = plgpu.Layout.WGMMA.reduce(1)
COLUMN_LAYOUT = plgpu.Layout.WGMMA.reduce(0)

#: Columns of a part of the output, by head dim: what a product of that width takes has to fit into the registers beside
#: the whole output.
COLUMNS = {64: 64, 128: 128, 256: 64}

#: Shared memory of a multiprocessor, what a thread block may have of it, and what of that comes on top of the arrays:
#: 1 KB that the system takes for each, 2 KB for reductions, and barriers and alignment.
MULTIPROCESSOR, THREAD_BLOCK, RESERVED = 228 * 1024, 227 * 1024, 7 * 1024

#: Of every row the largest logit in units of ln 2 and the sum of the weights; the unnormalised output, in parts.
Carry = tuple[jax.Array, jax.Array, list[jax.Array]]


class Tiles(NamedTuple):
    """The sizes that a kernel is built for."""

    tokens: int
    stages: int


def check(q: Any, k_pages: Any, v_pages: Any, config: HopperConfig | None = None) -> Tiles:
    """The sizes to use for arrays of these shapes and types, or a ValueError that names the limit."""
    N, H = q.shape[2:]
    K, S = k_pages.shape[1:3]
    if k_pages.shape != v_pages.shape:
        raise ValueError(f"keys and values must have one shape, not {k_pages.shape} and {v_pages.shape}")
    if k_pages.dtype != v_pages.dtype:
        raise ValueError(f"keys and values must have one type, not {k_pages.dtype} and {v_pages.dtype}")
    if k_pages.shape[3] != H:
        raise ValueError(f"queries of head dim {H} cannot attend to keys of head dim {k_pages.shape[3]}")
    if q.dtype != jnp.bfloat16:
        raise ValueError(f"the Hopper kernels do queries of bfloat16, not {q.dtype}")
    if k_pages.dtype not in (jnp.bfloat16, *LARGEST):
        raise ValueError(f"the Hopper kernels do caches of bfloat16, int8 and float8_e4m3fn, not {k_pages.dtype}")
    if H not in (64, 128, 256):
        raise ValueError(f"the Hopper kernels do head dims 64, 128 and 256, not {H}")
    if N % K or N // K > 16:
        raise ValueError(f"the Hopper kernels do 1 to 16 query heads a kv head, not {N} for {K}")
    if S not in (16, 32, 64):
        raise ValueError(f"the Hopper kernels do pages of 16, 32 and 64 tokens, not {S}")

    decoding, quantized, config = q.shape[1] == 1, k_pages.dtype != jnp.bfloat16, config or HopperConfig()
    # long tiles keep the tensor cores busy where there are rows to fill them, and as far as registers go
    tokens = config.block_kv or (128 if not decoding and H * (2 if quantized else 1) <= 128 else 64)
    fixed, stage = _shared_memory(decoding, quantized, tokens, H)
    most = (THREAD_BLOCK - RESERVED - fixed) // stage
    if config.stages is None and most:
        # Decoding: while one thread block computes, the other's stages are on their way, so two should fit, with two
        # stages each. In bfloat16 that is so for head dim 64 (16 KB + 16 KB a stage) and 128 (24 KB + 32 KB a stage,
        # 88 of 107 KB); 256 (40 KB + 64 KB a stage) is left to one thread block. In 8 bits, where widening takes
        # as much as a bfloat16 stage, it is so for 64 (32 + 8.5 KB) and 128 (56 + 16.5 KB).
        # Prefill: one thread block fills a multiprocessor.
        shared = (MULTIPROCESSOR // 2 - RESERVED - fixed) // stage if decoding else most
        return Tiles(tokens, min(4, shared if shared >= 2 else min(most, 2)))
    if (stages := config.stages or 1) > most:
        raise ValueError(f"shared memory holds {most} stages of {tokens} tokens, not {stages}")
    return Tiles(tokens, stages)


def _shared_memory(decoding: bool, quantized: bool, tokens: int, head_dim: int) -> tuple[int, int]:
    """Bytes beside the stages (queries, weights, and what widened stages share), and bytes of a stage."""
    rows, pair = ROWS if decoding else 2 * ROWS, 2 * tokens * head_dim
    fixed = 2 * rows * (head_dim + tokens)
    if not quantized:
        return fixed, 2 * pair
    scales = 2 * tokens * 4
    return (fixed + 2 * pair, pair + scales) if decoding else (fixed, 3 * pair + 2 * scales)


class Ring(NamedTuple):
    """Stages of keys or of values in shared memory, the scales of a cache in 8 bits, and their barriers."""

    pages: Any
    scales: Any
    ready: Any


def ring(tiles: Tiles, head_dim: int, dtype: Any, *, scaled: bool, arrivals: int) -> Ring:
    """Shared memory to allocate for a :class:`Ring`; so many arrivals fill a stage."""
    scales = plgpu.SMEM((tiles.stages, tiles.tokens), jnp.float32) if scaled else None
    return Ring(swizzled((tiles.stages, tiles.tokens, head_dim), dtype), scales, barrier(arrivals, tiles.stages))


def barrier(arrivals: int, count: int = 1) -> Any:
    """Barriers that so many arrivals complete."""
    return plgpu.Barrier(num_arrivals=arrivals, num_barriers=count)


def fetch(
    pool: Any, scales: Any, to: Ring, slot: jax.Array | int, pages: list[jax.Array], head: jax.Array, ready: Any = None
) -> None:
    """Start the copies of one stage: an arrival a page, and another for the scales of a page where there are any."""
    S = pool.shape[2]
    ready = to.ready.at[slot] if ready is None else ready
    for i, page in enumerate(pages):
        plgpu.copy_gmem_to_smem(pool.at[page, head], to.pages.at[slot, pl.ds(i * S, S)], ready)
        if scales is not None:
            # the promise makes it a plain copy: one through a tensor map has to go to a multiple of 128 bytes
            promise = plgpu.OOBFillMode.PROMISE_IN_BOUNDS
            plgpu.copy_gmem_to_smem(scales.at[page, head], to.scales.at[slot, pl.ds(i * S, S)], ready, oob_mode=promise)


def widen(stored: Any, wide: Any) -> Any:
    """Write a stage of 8 bits to a bfloat16 one, which comes back; in a layout that reads 4 bytes at once.

    float8 goes through float32, because the hardware of SM90 widens it to float16 only.
    """
    T, H = stored.shape
    width = min(H, 128)
    for row in range(0, T, ROWS):
        for column in range(0, H, width):
            part = (pl.ds(row, ROWS), pl.ds(column, width))
            values = plgpu.load(stored.at[part], layout=plgpu.Layout.WGMMA_UPCAST_2X)
            wide[part] = (values if stored.dtype == jnp.int8 else values.astype(jnp.float32)).astype(wide.dtype)
    return wide


def drop(values: Any, used: jax.Array) -> None:
    """Zero a stage of values from token ``used`` on: what is there may be NaN, and 0 * NaN would be NaN, too."""
    T, H = values.shape
    for row in range(0, T, ROWS):

        @pl.when(row + ROWS > used)
        def _drop(row: int = row) -> None:
            # in small parts: whoever does this may have few registers
            for column in range(0, H, 64):
                part = (pl.ds(row, ROWS), pl.ds(column, 64))
                kept = plgpu.load(values.at[part], layout=TILE_LAYOUT)
                token = row + plgpu.broadcasted_iota(jnp.int32, kept.shape, 0, layout=TILE_LAYOUT)
                values[part] = jnp.where(token < used, kept, jnp.zeros_like(kept))


def logits(
    dots: jax.Array, *, scale: float, soft_cap: float | None, scales: jax.Array | None
) -> tuple[jax.Array, float]:
    """Logits of a tile in a unit of their own, and that unit (positive) in ln 2."""
    if scales is not None:
        dots *= over_columns(scales, dots.shape)
    if soft_cap is not None:
        return jnp.tanh(dots * (scale / soft_cap)), soft_cap * LOG2E
    # the unit is left to the subtraction in the exponent, which does it in the same instruction
    return (dots, scale * LOG2E) if scale > 0 else (dots * scale, LOG2E)


def soften(
    tile: jax.Array, unit: float, seen: jax.Array | None, top: jax.Array, total: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """A step of the running softmax: the tile's weights, what earlier weights shrink by, and the new top and total.

    ``top`` starts finite, so that rows that have seen nothing yet get weights of 0 and no NaN.
    """
    if seen is not None:
        tile = jnp.where(seen, tile, -jnp.inf)
    new_top = jnp.maximum(top, tile.max(axis=1) * unit)
    weights = jnp.exp2(tile * unit - over_rows(new_top, tile.shape))
    shrink = jnp.exp2(top - new_top)
    return weights, shrink, new_top, total * shrink + weights.sum(axis=1)


def matmul(a: Any, b: Any, meanwhile: Callable[[], None] | None = None) -> jax.Array:
    """The float32 product of 64 rows and a matrix, both in shared memory; waits for it."""

    def multiply(out: Any) -> jax.Array:
        plgpu.wgmma(out, a, b)
        if meanwhile is not None:
            meanwhile()
        return out[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((ROWS, b.shape[1]), jnp.float32))


def accumulate(acc: list[jax.Array], shrink: jax.Array, weights: Any, values: Any) -> list[jax.Array]:
    """Shrink the output and add what the values weigh.

    The weights come from shared memory, and the product goes to an accumulator of its own, because Mosaic's
    interpreter multiplies neither from registers nor into what is already there.
    """
    width = acc[0].shape[1]
    return [
        part * over_rows(shrink, part.shape) + matmul(weights, values.at[:, pl.ds(i * width, width)])
        for i, part in enumerate(acc)
    ]


def initial(head_dim: int, sink: jax.Array | None = None) -> Carry:
    """Top, total and output before the first token; a sink is a logit that every row sees and that has no value."""
    width = COLUMNS[head_dim]
    top = fill((ROWS,), MASKED if sink is None else jnp.maximum(sink * LOG2E, MASKED), ROW_LAYOUT)
    total = fill((ROWS,), 0 if sink is None else 1, ROW_LAYOUT)
    return top, total, [fill((ROWS, width), 0, TILE_LAYOUT) for _ in range(head_dim // width)]


def over_rows(numbers: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A number a row, over the row."""
    return lax.broadcast_in_dim(numbers, shape, [0])


def over_columns(numbers: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A number a column, over the column."""
    return lax.broadcast_in_dim(numbers, shape, [1])


def fill(shape: tuple[int, ...], value: Any, layout: Any) -> jax.Array:
    """A float32 array of one number, in registers."""
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def swizzled(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory in the layout that TMA and wgmma agree on: tiles of 8 rows of 128 bytes, or of the whole row."""
    size = jnp.dtype(dtype).itemsize
    width = min(128, shape[-1] * size)
    tile: Any = plgpu.TilingTransform((8, width // size))  # type: ignore[abstract]
    swizzle: Any = plgpu.SwizzleTransform(width)  # type: ignore[abstract]
    return plgpu.SMEM(shape, dtype, transforms=(tile, swizzle))
