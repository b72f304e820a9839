"""The grouped matmul for SM90 GPUs in Pallas Mosaic.

The sorted rows are cut into tiles that each belong to one expert, and a thread block multiplies one tile with up to
128 output channels of its expert: a warpgroup for each 64 channels, and one that copies. The channels are the rows
of the product and the tile its columns, of which the tensor cores do as few as 8: decoding brings an expert only a
row or two. Tiles go to a buffer of their own, rows of other experts with them, and XLA picks the rows that are wanted
in what it does next with the result. Not measured yet.
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

from pallas_kernels.grouped_matmul.config import HopperConfig
from pallas_kernels.grouped_matmul.reference import collect, plan, rows_of_tile
from pallas_kernels.quantized_matmul import QuantizedWeight

__all__ = ["check", "grouped_matmul"]

#: Output channels that one warpgroup multiplies at a time: the height of a wgmma tile.
CHANNELS = 64

#: Rows of a shared-memory tile: TMA brings whole ones.
ALIGN = 8

#: Shared memory that a thread block may have, and what barriers and alignment may take of it.
SHARED_MEMORY, RESERVED = 227 * 1024, 4096

#: Rows of a tile, and stages, unless a config says otherwise. Not tuned: no GPU has run this yet.
FEWEST, MOST, STAGES = 16, 128, 6


def check(x: Any, weights: Any, config: HopperConfig | None = None) -> HopperConfig:
    """The config to use for arrays of these shapes and types, or a ValueError that names the limit."""
    if isinstance(weights, QuantizedWeight):
        raise ValueError("the Hopper kernel does bfloat16 only, and the weights are quantized")
    rows, (experts, outputs, inputs) = x.shape[0], weights.shape
    for name, array in (("rows", x), ("weights", weights)):
        if array.dtype != jnp.bfloat16:
            raise ValueError(f"the Hopper kernel does bfloat16 only, and the {name} are {array.dtype}")
    if not rows:
        raise ValueError("the Hopper kernel does 1 row or more, not 0")
    if outputs % CHANNELS or inputs % 64:
        raise ValueError(f"the Hopper kernel does multiples of 64 output and input channels, not {outputs}, {inputs}")
    if config is None:
        block_t = rows_of_tile(rows, experts, FEWEST, MOST)
        block_k = 64 if inputs % 128 or block_t > 64 else 128
        return HopperConfig(
            block_t=block_t, block_k=block_k, stages=min(STAGES, _most_stages(outputs, block_t, block_k))
        )
    if inputs % config.block_k:
        raise ValueError(f"{inputs} input channels are no multiple of the {config.block_k} of a stage")
    if config.stages > (most := _most_stages(outputs, config.block_t, config.block_k)):
        raise ValueError(f"shared memory holds {most} stages of {config.block_k} input channels, not {config.stages}")
    return config


def grouped_matmul(
    x: Float[Array, "T I"],
    weights: Float[Array, "E O I"],
    group_sizes: Int[Array, "E"],
    *,
    config: HopperConfig | None = None,
    interpret: Any = None,
) -> Float[Array, "T O"]:
    """See :func:`pallas_kernels.grouped_matmul.grouped_matmul`.

    Arguments:
      config: block sizes; None takes defaults for the shape.
      interpret: as ``plgpu.kernel``'s; ``plgpu.InterpretGPUParams()`` runs on a CPU.

    Raises:
      ValueError: the shapes, the types or the config are not among those that the kernel does.
    """
    config = check(x, weights, config)
    rows, outputs = x.shape[0], weights.shape[1]
    tiles = plan(group_sizes, rows, config.block_t, align=ALIGN)
    padded = jnp.pad(x, ((0, max(-rows % ALIGN, config.block_t - rows)), (0, 0)))
    warpgroups = _warpgroups(outputs)
    kernel = plgpu.kernel(
        partial(_multiply_tile, config=config, warpgroups=warpgroups),
        out_type=jax.ShapeDtypeStruct((len(tiles.expert), config.block_t, outputs), x.dtype),
        # thread blocks that run together share their rows, and the matrices of few experts
        grid=(len(tiles.expert), outputs // (warpgroups * CHANNELS)),
        grid_names=("tile", "channels"),
        num_threads=warpgroups + 1,
        thread_name="warpgroup",
        interpret=interpret,
    )
    work = jnp.stack([tiles.expert, tiles.start], axis=1)
    return collect(kernel(work, tiles.used[None], padded, weights), tiles, group_sizes)


def _multiply_tile(
    work_ref: Any, used_ref: Any, x_ref: Any, weights_ref: Any, out_ref: Any,
    *, config: HopperConfig, warpgroups: int,
) -> None:  # fmt: skip
    """The kernel: one tile, and the output channels of one thread block."""
    tile, block, warpgroup = (lax.axis_index(name) for name in ("tile", "channels", "warpgroup"))
    stages, block_k = config.stages, config.block_k
    expert, start = work_ref[tile, 0], pl.multiple_of(work_ref[tile, 1], ALIGN)
    steps = jnp.where(tile < used_ref[0], x_ref.shape[1] // block_k, 0)
    width = warpgroups * CHANNELS

    def share(weights_smem: Any, x_smem: Any, out_smem: Any, ready: Any, consumed: Any) -> None:
        def fetch(step: jax.Array | int) -> None:
            slot = lax.rem(jnp.int32(step), stages)
            inputs = pl.ds(step * block_k, block_k)
            channels = pl.ds(block * width, width)
            plgpu.copy_gmem_to_smem(weights_ref.at[expert, channels, inputs], weights_smem.at[slot], ready.at[slot])
            plgpu.copy_gmem_to_smem(x_ref.at[pl.ds(start, config.block_t), inputs], x_smem.at[slot], ready.at[slot])

        @pl.when(warpgroup == warpgroups)
        def _copy() -> None:
            def refill(index: jax.Array, _: None) -> None:
                plgpu.barrier_wait(consumed.at[lax.rem(index, stages)])
                fetch(index)

            @pl.when(steps > 0)
            def _fill() -> None:
                for index in range(min(stages, x_ref.shape[1] // block_k)):
                    fetch(index)

            lax.fori_loop(stages, steps, refill, None)

        @pl.when((warpgroup < warpgroups) & (steps > 0))
        def _compute() -> None:
            def multiply(accumulator: Any) -> jax.Array:
                def step(index: jax.Array, _: None) -> None:
                    slot = lax.rem(index, stages)
                    plgpu.barrier_wait(ready.at[slot])
                    mine = weights_smem.at[slot, pl.ds(warpgroup * CHANNELS, CHANNELS)]
                    plgpu.wgmma(accumulator, mine, x_smem.at[slot].T)
                    plgpu.wgmma_wait(1)  # the step before this one is done

                    @pl.when((index > 0) & (index - 1 + stages < steps))
                    def _release() -> None:
                        plgpu.barrier_arrive(consumed.at[lax.rem(index - 1, stages)])

                lax.fori_loop(0, steps, step, None)
                return accumulator[...]

            product = pl.run_scoped(
                multiply, plgpu.WGMMAAccumulatorRef((CHANNELS, config.block_t), jnp.float32)
            ).astype(out_ref.dtype)
            out_smem.at[warpgroup].T[...] = plgpu.layout_cast(product, plgpu.Layout.WGMMA_TRANSPOSED)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(
                out_smem.at[warpgroup], out_ref.at[tile, :, pl.ds(block * width + warpgroup * CHANNELS, CHANNELS)]
            )
            plgpu.wait_smem_to_gmem(0)

    pl.run_scoped(
        share,
        _swizzled((stages, width, block_k), x_ref.dtype),
        _swizzled((stages, config.block_t, block_k), x_ref.dtype),
        _swizzled((warpgroups, config.block_t, CHANNELS), x_ref.dtype),
        plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages),
        collective_axes="warpgroup",
    )


def _warpgroups(outputs: int) -> int:
    """Warpgroups of a thread block that multiply."""
    return 1 if outputs % (2 * CHANNELS) else 2


def _most_stages(outputs: int, block_t: int, block_k: int) -> int:
    """Pipeline stages that fit into shared memory beside the tile that is written."""
    width = _warpgroups(outputs) * CHANNELS
    return (SHARED_MEMORY - RESERVED - 2 * block_t * width) // (2 * block_k * (width + block_t))


def _swizzled(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory in the layout that TMA and wgmma agree on: tiles of 8 rows of 128 bytes."""
    tile: Any = plgpu.TilingTransform((8, 64))  # type: ignore[abstract]
    swizzle: Any = plgpu.SwizzleTransform(128)  # type: ignore[abstract]
    return plgpu.SMEM(shape, dtype, transforms=(tile, swizzle))
