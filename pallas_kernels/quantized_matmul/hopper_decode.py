"""The quantised matmul of few rows for SM90 GPUs in Pallas Mosaic: as fast as the weights come from memory.

A thread block of one warpgroup multiplies 64 output channels, and one split of the input channels, with all rows of
``x``. It keeps a ring of stages filled by TMA; several thread blocks share a multiprocessor. Splits leave partial sums
in float32 that an XLA operation adds up, usually fused with what comes next.

Scales of groups multiply the float32 sum of a group, not the weights: for 8 rows that is 4 multiplications a thread
instead of 16 (a group of 32 channels), and nothing is rounded.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pallas_kernels.quantized_matmul.config import HopperConfig
from pallas_kernels.quantized_matmul.hopper import (
    ROWS,
    TILE_LAYOUT,
    load_scale,
    operands,
    part_width,
    scaled,
    swizzled,
    work_of_split,
)
from pallas_kernels.quantized_matmul.weight import QuantizedWeight

__all__ = ["matmul"]

#: Columns of the accumulators that are in flight together: 64 registers of each thread.
COLUMNS = 128


def matmul(
    x: Float[Array, "T I"], weight: QuantizedWeight, *, config: HopperConfig, out_dtype: Any, interpret: Any = None
) -> Float[Array, "T O"]:
    """Up to 64 rows; arguments as for :func:`pallas_kernels.quantized_matmul.hopper.matmul`, and checked by it."""
    outputs, _ = weight.shape
    # rows up to a multiple of 8, the height of a shared-memory tile
    rows = -(-len(x) // 8) * 8
    kernel = plgpu.kernel(
        partial(_multiply_tile, config=config, group=weight.group_size),
        out_type=jax.ShapeDtypeStruct((config.splits, rows, outputs), out_dtype if config.splits == 1 else jnp.float32),
        grid=(config.splits, outputs // ROWS),
        grid_names=("split", "tile"),
        interpret=interpret,
    )
    parts = kernel(jnp.pad(x, ((0, rows - len(x)), (0, 0))), weight.values, weight.scales)
    return (parts[0] if config.splits == 1 else parts.sum(0))[: len(x)].astype(out_dtype)


def _multiply_tile(
    x_ref: Any, values_ref: Any, scales_ref: Any, out_ref: Any, *, config: HopperConfig, group: int | None
) -> None:
    """The kernel: 64 output channels of one split."""
    split, tile = lax.axis_index("split"), lax.axis_index("tile")
    rows, stages, block_k = x_ref.shape[0], config.stages, config.block_k
    width = part_width(config, group)
    parts = block_k // width
    outputs = pl.ds(tile * ROWS, ROWS)
    first, steps = work_of_split(split, config, x_ref.shape[1])

    def walk(x_smem: Any, values_smem: Any, scales_smem: Any, out_smem: Any, ready: Any, **optional: Any) -> None:
        staging = optional.get("staging")

        def fetch(step: jax.Array | int) -> None:
            slot = lax.rem(jnp.int32(step), stages)
            inputs = pl.ds((first + step) * block_k, block_k)
            plgpu.copy_gmem_to_smem(values_ref.at[outputs, inputs], values_smem.at[slot], ready.at[slot])
            plgpu.copy_gmem_to_smem(x_ref.at[:, inputs], x_smem.at[slot], ready.at[slot])
            if group is not None:
                groups = pl.ds((first + step) * parts, parts)
                plgpu.copy_gmem_to_smem(scales_ref.at[groups, outputs], scales_smem.at[slot], ready.at[slot])

        def step(index: jax.Array, total: jax.Array) -> jax.Array:
            slot = lax.rem(index, stages)

            def multiply(*accumulators: Any, begin: int) -> list[jax.Array]:
                for i, accumulator in enumerate(accumulators, begin):
                    inputs = pl.ds(i * width, width)
                    plgpu.wgmma(accumulator, weights[i], x_smem.at[slot, :, inputs].T)
                return [accumulator[...] for accumulator in accumulators]

            plgpu.barrier_wait(ready.at[slot])
            weights = operands(values_smem.at[slot], staging, None, width)
            together = min(parts, max(1, COLUMNS // rows))
            for begin in range(0, parts, together):
                accumulators = [plgpu.WGMMAAccumulatorRef((ROWS, rows), jnp.float32)] * min(together, parts - begin)
                for i, part in enumerate(pl.run_scoped(partial(multiply, begin=begin), *accumulators), begin):
                    total += part if group is None else scaled(part, load_scale(scales_smem.at[slot, i]))

            plgpu.commit_smem()  # all warps are done with the stage

            @pl.when(index + stages < steps)
            def _refill() -> None:
                fetch(index + stages)

            return total

        if group is None:
            plgpu.copy_gmem_to_smem(scales_ref.at[:, outputs], scales_smem.at[0], optional["scales_ready"])
        for index in range(stages):
            pl.when(index < steps)(partial(fetch, index))
        total = plgpu.layout_cast(jnp.zeros((ROWS, rows), jnp.float32), TILE_LAYOUT)
        total = lax.fori_loop(0, steps, step, total)
        if group is None:
            plgpu.barrier_wait(optional["scales_ready"])
            total = scaled(total, load_scale(scales_smem.at[0, 0]))
        out_smem.T[...] = plgpu.layout_cast(total.astype(out_smem.dtype), plgpu.Layout.WGMMA_TRANSPOSED)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem, out_ref.at[split, :, outputs])
        plgpu.wait_smem_to_gmem(0)

    memory = {
        "x_smem": swizzled((stages, rows, block_k), x_ref.dtype, width),
        "values_smem": swizzled((stages, ROWS, block_k), values_ref.dtype),
        "scales_smem": plgpu.SMEM((1 if group is None else stages, parts, ROWS), scales_ref.dtype),
        "out_smem": swizzled((rows, ROWS), out_ref.dtype),
        "ready": plgpu.Barrier(num_arrivals=2 if group is None else 3, num_barriers=stages),
    }
    if group is None:
        memory["scales_ready"] = plgpu.Barrier()
    if config.operand == "shared":
        memory["staging"] = swizzled((ROWS, block_k), x_ref.dtype, width)
    pl.run_scoped(walk, **memory)
