"""What the Hopper kernels share: their limits, their defaults, and the way from stored weights to wgmma.

The weights are the M side of wgmma, 64 output channels a warpgroup, and the rows of ``x`` the N side, so that few rows
waste nothing: N may be 8. wgmma takes M from registers, where the weights are converted; bfloat16 holds each of their
values. So a weight's own bytes pass through shared memory twice, written by TMA and read. By way of shared memory it
would be 4 bytes more, written and read as bfloat16: at 3.35 TB/s a multiprocessor of an H100 receives 14 bytes a
clock, which is 28 weights in int4, and 5 bytes for each of them are more than the 128 a clock that it can move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pallas_kernels.quantized_matmul.config import HopperConfig
from pallas_kernels.quantized_matmul.weight import QuantizedWeight, bits

__all__ = [
    "FEW_ROWS",
    "ROWS",
    "TILE_LAYOUT",
    "WRITTEN",
    "check",
    "default_config",
    "load_scale",
    "matmul",
    "operands",
    "part_width",
    "scaled",
    "swizzled",
    "work_of_split",
]

#: Output channels of a wgmma tile, the smallest there is.
ROWS = 64

#: Rows of ``x`` up to which there is one tile and the weights' bytes are what a product costs.
FEW_ROWS = 64

#: Rows of the result that the kernel for many rows writes at a time.
WRITTEN = 64

#: Of an H100 SXM by its data sheet: multiprocessors, dense bfloat16 operations and bytes of memory a second.
MULTIPROCESSORS, FLOPS, BANDWIDTH = 132, 989e12, 3.35e12

#: Shared memory that a thread block may have, what barriers may take of it, and what an allocation is a multiple of.
SHARED_MEMORY, RESERVED, ALIGNMENT = 227 * 1024, 1024, 1024

#: How registers hold a tile of 32-bit and 16-bit elements, and a number for each row of it.
TILE_LAYOUT = plgpu.Layout.WGMMA
ROW_LAYOUT = plgpu.Layout.WGMMA.reduce(1)

#: How registers hold a tile of 4-bit and 8-bit elements, so that a thread loads 32 bits at a time.
PACKED_LAYOUT = {4: plgpu.Layout.WGMMA_UPCAST_4X, 8: plgpu.Layout.WGMMA_UPCAST_2X}


def matmul(
    x: Float[Array, "T I"],
    weight: QuantizedWeight,
    *,
    config: HopperConfig | None = None,
    out_dtype: Any = None,
    interpret: Any = None,
) -> Float[Array, "T O"]:
    """The product by the kernel for so many rows; see :func:`pallas_kernels.quantized_matmul.quantized_matmul`.

    Arguments:
      config: None takes :func:`default_config`.
      out_dtype: float32 or bfloat16; None is bfloat16.
      interpret: as ``plgpu.kernel``'s; ``plgpu.InterpretGPUParams()`` runs on a CPU.

    Raises:
      ValueError: the shapes, the types or the config are not among those that the kernels do.
    """
    from pallas_kernels.quantized_matmul import hopper_decode, hopper_prefill

    config = check(x, weight, config)
    if interpret is not None and config.operand == "registers":
        raise ValueError('Mosaic\'s interpreter multiplies nothing from registers: operand must be "shared"')
    out_dtype = x.dtype if out_dtype is None else jnp.dtype(out_dtype)
    if out_dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"the Hopper kernels return float32 or bfloat16, not {out_dtype}")
    kernel = hopper_decode.matmul if x.shape[0] <= FEW_ROWS else hopper_prefill.matmul
    return kernel(x, weight, config=config, out_dtype=out_dtype, interpret=interpret)


def check(x: Any, weight: QuantizedWeight, config: HopperConfig | None = None) -> HopperConfig:
    """The config to use for arrays of these shapes and types, or a ValueError that names the limit."""
    rows, (outputs, inputs), group = x.shape[0], weight.shape, weight.group_size
    if x.dtype != jnp.bfloat16:
        raise ValueError(f"the Hopper kernels do activations in bfloat16 only, not {x.dtype}")
    if weight.bytes_of is not None or weight.values.dtype == jnp.float4_e2m1fn:
        what = weight.bytes_of or "mxfp4"
        raise ValueError(f"the Hopper kernels do int8, int4 and float8 in types of their own, not {what} in bytes")
    if weight.scales.dtype not in (jnp.float32, jnp.float16, jnp.bfloat16):
        raise ValueError(f"the Hopper kernels do scales in float32, float16 and bfloat16, not {weight.scales.dtype}")
    if rows == 0:
        raise ValueError("the Hopper kernels do 1 row or more, not 0")
    if outputs % 128 or inputs % 128:
        raise ValueError(f"the Hopper kernels do multiples of 128 output and input channels, not {outputs}, {inputs}")
    if group not in (None, 32, 64, 128):
        raise ValueError(f"the Hopper kernels do groups of 32, 64 and 128 input channels or one a row, not {group}")
    if config is None:
        return default_config(x, weight)
    if rows <= FEW_ROWS and config.block_k == 64:
        raise ValueError(f"up to {FEW_ROWS} rows take stages of 128 or 256 input channels, not 64")
    if inputs % config.block_k:
        raise ValueError(f"{inputs} input channels are no multiple of the {config.block_k} of a stage")
    if config.splits > inputs // config.block_k:
        raise ValueError(f"{inputs // config.block_k} steps of input channels do not make {config.splits} splits")
    if config.stages > (most := _most_stages(x, weight, config)):
        raise ValueError(f"shared memory holds {most} stages of {config.block_k} input channels, not {config.stages}")
    return config


def default_config(x: Any, weight: QuantizedWeight) -> HopperConfig:
    """Block sizes by shape, from arithmetic and not from measurements.

    Few rows. Little's law: 3.35 TB/s (4.8 on an H200) times about a microsecond of latency under load is 3.4 MB
    (4.8) in flight, 25 (36) KiB for each multiprocessor. A stage holds 8 KiB of weights beside 2 to 16 KiB of ``x``,
    4 stages make 32 KiB for a thread block, and there are about two thread blocks for each multiprocessor, which
    also hide one another's conversions and waits.

    Many rows. One thread block of 128 output channels at a time fits onto a multiprocessor, so the product takes as
    long as there are waves of them. In a wave a stage costs the products of ``block_t`` rows and the conversion of its
    weights, which is counted as 64 rows more; splits cost the bytes of the partial sums, written and read.
    """
    rows, (outputs, inputs) = x.shape[0], weight.shape
    if rows <= FEW_ROWS:
        wide = bits(weight.values.dtype) == 4 and inputs % 256 == 0 and rows <= FEW_ROWS // 2
        block_k, block_t = 256 if wide else 128, 64
        # fewer than 4 steps would leave stages empty
        splits = max(1, min(round(2 * MULTIPROCESSORS * ROWS / outputs), inputs // block_k // 4))
    else:
        block_k = 64

        def cut(size: int) -> tuple[float, int, int]:
            tiles = -(-rows // size) * (outputs // (2 * ROWS))
            splits = max(1, min(MULTIPROCESSORS // tiles, inputs // block_k // 8))
            waves = -(-tiles * splits // MULTIPROCESSORS)
            seconds = waves * (size + 64) * 2 * ROWS * inputs / splits * 2 * MULTIPROCESSORS / FLOPS
            return seconds + (0 if splits == 1 else 8 * splits * rows * outputs / BANDWIDTH), size, splits

        _, block_t, splits = min((cut(size) for size in (256, 128, 64)), key=lambda cost: cost[0])
    config = HopperConfig(block_k=block_k, stages=4, splits=splits, block_t=block_t)
    return replace(config, stages=min(config.stages, _most_stages(x, weight, config)))


def _most_stages(x: Any, weight: QuantizedWeight, config: HopperConfig) -> int:
    """Pipeline stages that fit into shared memory beside what there is one of."""
    group, few = weight.group_size, x.shape[0] <= FEW_ROWS
    rows, outputs = (-(-x.shape[0] // 8) * 8, ROWS) if few else (config.block_t, 2 * ROWS)
    stage = 2 * rows * config.block_k + outputs * config.block_k * bits(weight.values.dtype) // 8
    if group is not None:
        stage += -(-config.block_k // group) * outputs * 4
    once = outputs * 4 * (rows if few else WRITTEN) + outputs * 4
    if config.operand == "shared":
        once += 2 * outputs * config.block_k
    # x, weights, scales, result, converted weights and barriers begin at a multiple each
    return (SHARED_MEMORY - RESERVED - 6 * ALIGNMENT - once) // stage


def work_of_split(split: jax.Array, config: HopperConfig, inputs: int) -> tuple[jax.Array, jax.Array]:
    """First pipeline step of a split, and how many steps it has: at least one, and alike but for one."""
    steps = inputs // config.block_k
    begin = lax.div(split * steps, config.splits)
    return begin, lax.div((split + 1) * steps, config.splits) - begin


def part_width(config: HopperConfig, group: int | None) -> int:
    """Input channels of one operand: a group's where a stage has several, else the whole stage."""
    return config.block_k if group is None else min(group, config.block_k)


def operands(weights: Any, staging: Any, scales: Sequence[jax.Array] | None, width: int) -> list[Any]:
    """The left operands of wgmma for a stage: ``[64, width]`` each, in bfloat16.

    Arguments:
      weights: shared memory, ``[64, block_k]`` of the stored type.
      staging: shared memory for operands that pass through it, as :func:`swizzled`; None for registers.
      scales: a float32 number for each row, for each operand, to multiply with and round; None to leave that out.
    """
    stored = plgpu.load(weights, layout=PACKED_LAYOUT[bits(weights.dtype)])
    # while they are narrow: a shuffle moves eight of 4 bits at once
    values = plgpu.layout_cast(stored, TILE_LAYOUT)
    if jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.float32)  # SM90 converts float8 to float16 only, and the way on is by float32
    converted = values.astype(jnp.bfloat16)
    parts = [converted[:, i : i + width] for i in range(0, converted.shape[1], width)]
    if scales is not None:
        parts = [
            scaled(part.astype(jnp.float32), scale).astype(jnp.bfloat16)
            for part, scale in zip(parts, scales, strict=True)
        ]
    if staging is None:
        return parts
    for i, part in enumerate(parts):
        staging[:, i * width : (i + 1) * width] = part
    plgpu.commit_smem()
    return [staging.at[:, i * width : (i + 1) * width] for i in range(len(parts))]


def scaled(tile: jax.Array, scale: jax.Array) -> jax.Array:
    """A tile, each of its rows multiplied by its scale."""
    return tile * lax.broadcast_in_dim(scale, tile.shape, [0])


def load_scale(scales: Any) -> jax.Array:
    """Scales of 64 output channels from shared memory, in float32, a number for each row of a tile."""
    return plgpu.load(scales, layout=ROW_LAYOUT).astype(jnp.float32)


def swizzled(shape: tuple[int, ...], dtype: Any, width: int | None = None) -> Any:
    """Shared memory in the layout that TMA and wgmma agree on: tiles of 8 rows of up to 128 bytes.

    Arguments:
      width: elements of a row that are read as one operand; tiles are no wider. None is all.
    """
    row = min(128, (width or shape[-1]) * bits(dtype) // 8)
    tile: Any = plgpu.TilingTransform((8, row * 8 // bits(dtype)))  # type: ignore[abstract]
    swizzle: Any = plgpu.SwizzleTransform(row)  # type: ignore[abstract]
    return plgpu.SMEM(shape, dtype, transforms=(tile, swizzle))
