"""The quantised matmul of many rows for SM90 GPUs in Pallas Mosaic: at the speed of the tensor cores.

A thread block makes a tile of 128 output channels and ``block_t`` rows of ``x``. Two warpgroups multiply 64 output
channels each, and while one converts its weights the tensor cores have the other's products; a third copies.

Scales of groups multiply the weights, which are rounded to bfloat16 once more: an accumulator of 256 columns takes
half of the registers, and a second one for the sums of the groups would not fit. The rounding is that of a weight
stored in bfloat16: at most 2**-9 of it, of either sign.
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
    WRITTEN,
    load_scale,
    operands,
    part_width,
    scaled,
    swizzled,
    work_of_split,
)
from pallas_kernels.quantized_matmul.weight import QuantizedWeight

__all__ = ["matmul"]

#: Warpgroups that multiply; one more copies.
COMPUTING = 2

#: Registers for each thread of a computing and of the copying warpgroup: 65,536 for all, in multiples of 8.
COMPUTING_REGISTERS, COPYING_REGISTERS = 232, 40


def matmul(
    x: Float[Array, "T I"], weight: QuantizedWeight, *, config: HopperConfig, out_dtype: Any, interpret: Any = None
) -> Float[Array, "T O"]:
    """Any number of rows, best a multiple of ``block_t``; others are padded. Arguments as for
    :func:`pallas_kernels.quantized_matmul.hopper.matmul`, and checked by it."""
    outputs, _ = weight.shape
    padded = jnp.pad(x, ((0, -len(x) % config.block_t), (0, 0)))
    kernel = plgpu.kernel(
        partial(_multiply_tile, config=config, group=weight.group_size),
        out_type=jax.ShapeDtypeStruct(
            (config.splits, len(padded), outputs), out_dtype if config.splits == 1 else jnp.float32
        ),
        # thread blocks that run together share few weights, so that these come from memory once, and all of x
        grid=(config.splits, outputs // (COMPUTING * ROWS), len(padded) // config.block_t),
        grid_names=("split", "tile", "rows"),
        num_threads=COMPUTING + 1,
        thread_name="warpgroup",
        interpret=interpret,
    )
    parts = kernel(padded, weight.values, weight.scales)
    return (parts[0] if config.splits == 1 else parts.sum(0))[: len(x)].astype(out_dtype)


def _multiply_tile(
    x_ref: Any, values_ref: Any, scales_ref: Any, out_ref: Any, *, config: HopperConfig, group: int | None
) -> None:
    """The kernel: a tile of the result, from one split of the input channels."""
    split, tile, block = (lax.axis_index(name) for name in ("split", "tile", "rows"))
    warpgroup = lax.axis_index("warpgroup")
    stages, block_k, block_t = config.stages, config.block_k, config.block_t
    width = part_width(config, group)
    parts = block_k // width
    outputs = pl.ds(tile * COMPUTING * ROWS, COMPUTING * ROWS)
    first, steps = work_of_split(split, config, x_ref.shape[1])

    def share(
        x_smem: Any, values_smem: Any, scales_smem: Any, out_smem: Any, ready: Any, consumed: Any, **optional: Any
    ) -> None:
        def fetch(step: jax.Array | int) -> None:
            slot = lax.rem(jnp.int32(step), stages)
            inputs = pl.ds((first + step) * block_k, block_k)
            plgpu.copy_gmem_to_smem(values_ref.at[outputs, inputs], values_smem.at[slot], ready.at[slot])
            plgpu.copy_gmem_to_smem(x_ref.at[pl.ds(block * block_t, block_t), inputs], x_smem.at[slot], ready.at[slot])
            if group is not None:
                # a group may be longer than a stage
                groups = pl.ds(lax.div((first + step) * block_k, group), parts)
                plgpu.copy_gmem_to_smem(scales_ref.at[groups, outputs], scales_smem.at[slot], ready.at[slot])

        @pl.when(warpgroup == COMPUTING)
        def _copy() -> None:
            plgpu.set_max_registers(COPYING_REGISTERS, action="decrease")
            if group is None:
                plgpu.copy_gmem_to_smem(scales_ref.at[:, outputs], scales_smem.at[0], optional["scales_ready"])

            def wait(index: jax.Array, _: None) -> None:
                plgpu.barrier_wait(consumed.at[lax.rem(index, stages)])

            def refill(index: jax.Array, _: None) -> None:
                wait(index, None)
                fetch(index)

            for index in range(stages):
                pl.when(index < steps)(partial(fetch, index))
            lax.fori_loop(stages, steps, refill, None)
            # the interpreter of JAX 0.11 wants each arrival seen
            lax.fori_loop(jnp.maximum(steps - stages, 0), steps, wait, None)

        @pl.when(warpgroup < COMPUTING)
        def _compute() -> None:
            plgpu.set_max_registers(COMPUTING_REGISTERS, action="increase")
            mine = pl.ds(warpgroup * ROWS, ROWS)
            staging = optional["staging"].at[warpgroup] if "staging" in optional else None

            def multiply(accumulator: Any) -> jax.Array:
                def step(index: jax.Array, _: None) -> None:
                    slot = lax.rem(index, stages)
                    plgpu.barrier_wait(ready.at[slot])
                    scales = None
                    if group is not None:
                        scales = [load_scale(scales_smem.at[slot, i, mine]) for i in range(parts)]
                    for i, weights in enumerate(operands(values_smem.at[slot, mine], staging, scales, width)):
                        plgpu.wgmma(accumulator, weights, x_smem.at[slot, :, pl.ds(i * width, width)].T)
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(consumed.at[slot])

                lax.fori_loop(0, steps, step, None)
                return accumulator[...]

            total = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((ROWS, block_t), jnp.float32))
            if group is None:
                plgpu.barrier_wait(optional["scales_ready"])
                total = scaled(total, load_scale(scales_smem.at[0, 0, mine]))
            total = total.astype(out_ref.dtype)
            for begin in range(0, block_t, WRITTEN):
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                part = total[:, begin : begin + WRITTEN]
                out_smem.at[warpgroup].T[...] = plgpu.layout_cast(part, plgpu.Layout.WGMMA_TRANSPOSED)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(
                    out_smem.at[warpgroup],
                    out_ref.at[
                        split,
                        pl.ds(block * block_t + begin, WRITTEN),
                        pl.ds((tile * COMPUTING + warpgroup) * ROWS, ROWS),
                    ],
                )
            plgpu.wait_smem_to_gmem(0)

    memory = {
        "x_smem": swizzled((stages, block_t, block_k), x_ref.dtype, width),
        "values_smem": swizzled((stages, COMPUTING * ROWS, block_k), values_ref.dtype),
        "scales_smem": plgpu.SMEM((1 if group is None else stages, parts, COMPUTING * ROWS), scales_ref.dtype),
        "out_smem": swizzled((COMPUTING, WRITTEN, ROWS), out_ref.dtype),
        "ready": plgpu.Barrier(num_arrivals=2 if group is None else 3, num_barriers=stages),
        "consumed": plgpu.Barrier(num_arrivals=COMPUTING, num_barriers=stages),
    }
    if group is None:
        memory["scales_ready"] = plgpu.Barrier()
    if config.operand == "shared":
        memory["staging"] = swizzled((COMPUTING, ROWS, block_k), x_ref.dtype, width)
    pl.run_scoped(share, **memory, collective_axes="warpgroup")
