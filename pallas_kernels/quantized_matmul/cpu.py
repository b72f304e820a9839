"""The quantised matmul for CPUs, where int8 products are fast (AMX, VNNI) and every conversion of a weight is felt.

XLA:CPU converts a weight in full before a product, through memory, so nothing here is converted that need not be.

Int8, one scale a row: the weight is used as it is stored. Activations become the sum of two int8 numbers, a coarse one
and what it leaves over, side by side as rows of one product: 15 bits, where 8 would cost more than the weights do
(outliers among activations), and the weight is still read once. The two rows also keep a single activation from
XLA:CPU's path for products with one row, which is many times slower. For many rows of bfloat16 the two rows cost more
than a conversion, which then pays if it stays in the cache: block by block (bench/notes.md).

Int4: unpacked to int8 with one scale a row in each step, 16-bit arithmetic in registers. The halves of the bytes are
two products, of the even and of the odd input channels: putting channels back in order costs more than the products.

Float8 and MXFP4: moved to float16 bit by bit, and from there to the type of the activations; MXFP4 in halves too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num

from pallas_kernels.quantized_matmul import reference
from pallas_kernels.quantized_matmul.weight import QuantizedWeight, in_bytes, own_values

__all__ = ["matmul", "offset_product"]

#: Both contract their last axis: as the weight lies in memory.
_ROWS_BY_ROWS = (((1,), (1,)), ((), ()))

#: How much finer the second int8 number of an activation is: half of 1 becomes 127.
_FINER = 254

#: Rows of bfloat16 from which an int8 weight is converted, and weights of a block: 4 MB in bfloat16.
_MANY_ROWS, _BLOCK = 128, 1 << 21

#: Weights of a block of int4, some 100 KB when they are unpacked.
_SMALL_BLOCK = 1 << 17

#: Fixed point of int4 scales: 8 times the largest is the largest int16 that ``>> 8`` rounds to an int8.
_LARGEST_MULTIPLIER = 127 * 256 // 8


def matmul(x: Float[Array, "T I"], weight: QuantizedWeight, *, out_dtype: Any = None) -> Float[Array, "T O"]:
    """``x @ dequantize(weight).T``; see :func:`pallas_kernels.quantized_matmul.quantized_matmul`.

    Int4 weights are rounded once more, to int8 with one scale a row.
    """
    method = weight.bytes_of or weight.values.dtype.name
    pairs = weight.shape[1] // weight.scales.shape[0] % 2 == 0
    # or XLA:CPU would convert the weights of all layers before the first product: they wait for nothing
    x, weight = lax.optimization_barrier((x, weight))
    if method == "int4" and pairs:
        y = _int4(x, weight)
    elif method == "int8" and weight.group_size is None:
        if x.dtype == jnp.bfloat16 and x.shape[0] >= _MANY_ROWS:
            y = _by_blocks(x, weight.values)
        else:
            coarse, scale = _split(x)
            y = _join(_dot(coarse, weight.values), scale)
        y = y * weight.scales[0].astype(jnp.float32)
    elif method in ("mxfp4", "float4_e2m1fn") and pairs:
        y = _mxfp4(x, weight)
    else:
        values = _float8_values(weight.values) if method in ("fp8", "float8_e4m3fn") else own_values(weight)
        wide = QuantizedWeight(values, weight.scales, weight.offsets)
        return reference.matmul(_never_one(x), wide, out_dtype=out_dtype)[: x.shape[0]]
    if weight.offsets is not None:
        y = y + offset_product(x, weight)
    return y.astype(x.dtype if out_dtype is None else out_dtype)


def offset_product(x: Float[Array, "T I"], weight: QuantizedWeight) -> Float[Array, "T O"]:
    """What a weight's offsets add to a product: they meet the sums of the groups of ``x``."""
    offsets = weight.offsets
    assert offsets is not None
    sums = x.astype(jnp.float32).reshape(x.shape[0], offsets.shape[0], -1).sum(-1)
    return lax.dot(sums, offsets.astype(jnp.float32), precision=lax.Precision.HIGHEST)


def _by_blocks(x: Float[Array, "T I"], values: Int[Array, "O I"]) -> Float[Array, "T O"]:
    """The product with values that are converted to the type of ``x``, some output channels at a time."""
    outputs, inputs = values.shape

    def multiply(start: Any, width: int) -> Float[Array, "T W"]:
        block = lax.dynamic_slice_in_dim(values, start, width).astype(x.dtype)
        return lax.dot_general(x, block, _ROWS_BY_ROWS, preferred_element_type=jnp.float32)

    return _in_blocks(multiply, outputs, inputs, _BLOCK)


def _in_blocks(
    multiply: Callable[[Any, int], jax.Array], outputs: int, inputs: int, weights: int
) -> Num[Array, "R O"]:
    """Put together what ``multiply(start, width)`` gives for blocks of output channels of at most so many weights."""
    size = max(64, weights // inputs // 64 * 64)
    count = outputs // size
    if count < 2:
        return multiply(0, outputs)
    y = lax.map(lambda index: multiply(index * size, size), jnp.arange(count))
    y = jnp.swapaxes(y, 0, 1).reshape(y.shape[1], -1)
    rest = outputs - count * size
    return jnp.concatenate([y, multiply(count * size, rest)], axis=1) if rest else y


def _int4(x: Float[Array, "T I"], weight: QuantizedWeight) -> Float[Array, "T O"]:
    outputs, groups = weight.shape[0], weight.scales.shape[0]
    pairs = _bytes(weight)
    scales = weight.scales.astype(jnp.float32)
    row = scales.max(0) / _LARGEST_MULTIPLIER
    multipliers = jnp.round(scales / row).astype(jnp.int16).T
    # or every weight would work out its group's multiplier anew
    multipliers, row = lax.optimization_barrier((multipliers, row))
    split, scale = _split(x)
    even, odd = split[:, 0::2], split[:, 1::2]

    def multiply(start: Any, width: int) -> Int[Array, "R W"]:
        some = lax.bitcast_convert_type(lax.dynamic_slice_in_dim(pairs, start, width), jnp.int8)
        of_group = lax.dynamic_slice_in_dim(multipliers, start, width)[..., None]

        def as_int8(half: Int[Array, "W J"]) -> Int[Array, "W J"]:
            wide = half.reshape(width, groups, -1).astype(jnp.int16) * of_group
            return ((wide + 128) >> 8).astype(jnp.int8).reshape(width, -1)

        return _dot(even, as_int8((some << 4) >> 4)) + _dot(odd, as_int8(some >> 4))

    # a loop, as the unpacked weights of all layers would be in memory at once otherwise: they wait for nothing
    return _join(_in_blocks(multiply, outputs, weight.shape[1], _SMALL_BLOCK), scale) * (row * 256)


def _mxfp4(x: Float[Array, "T I"], weight: QuantizedWeight) -> Float[Array, "T O"]:
    outputs, groups = weight.shape[0], weight.scales.shape[0]
    pairs = _bytes(weight).astype(jnp.uint16)
    # float16 has the bits of a number of 4 bits in the same order, with an exponent that is 14 larger
    scales = (weight.scales.astype(jnp.float32) * 2.0**14).T[..., None]

    def numbers(half: Int[Array, "O J"]) -> Float[Array, "O J"]:
        moved = lax.bitcast_convert_type(((half & 8) << 12) | ((half & 7) << 9), jnp.float16)
        return (moved.astype(jnp.float32).reshape(outputs, groups, -1) * scales).astype(x.dtype).reshape(outputs, -1)

    rows = _never_one(x)
    low, high = (
        lax.dot_general(rows[:, first::2], numbers(half), _ROWS_BY_ROWS, preferred_element_type=jnp.float32)
        for first, half in ((0, pairs), (1, pairs >> 4))
    )
    return (low + high)[: x.shape[0]]


def _bytes(weight: QuantizedWeight) -> Int[Array, "O J"]:
    """Values of 4 bits as bytes of two."""
    return (weight if weight.bytes_of is not None else in_bytes(weight)).values


def _never_one(x: Float[Array, "T I"]) -> Float[Array, "R I"]:
    """Two rows for one, for which XLA:CPU is many times slower."""
    return x if x.shape[0] > 1 else jnp.concatenate([x, x])


def _split(x: Float[Array, "T I"]) -> tuple[Int[Array, "2T I"], Float[Array, "T 1"]]:
    """Activations as int8 numbers, the coarse ones above the finer ones, and the unit of the coarse ones."""
    x = x.astype(jnp.float32)
    # a row of zeros has any scale
    scale = jnp.maximum(jnp.abs(x).max(-1, keepdims=True) / 127, jnp.finfo(jnp.float32).tiny)
    scaled = x / scale
    coarse = jnp.round(scaled)
    return jnp.concatenate([coarse, jnp.round((scaled - coarse) * _FINER)]).astype(jnp.int8), scale


def _join(y: Int[Array, "2T O"], scale: Float[Array, "T 1"]) -> Float[Array, "T O"]:
    rows = scale.shape[0]
    return (y[:rows].astype(jnp.float32) + y[rows:].astype(jnp.float32) / _FINER) * scale


def _dot(x: Int[Array, "T I"], values: Int[Array, "O I"]) -> Int[Array, "T O"]:
    return lax.dot_general(x, values, _ROWS_BY_ROWS, preferred_element_type=jnp.int32)


def _float8_values(values: Any) -> jax.Array:
    """Float8 (e4m3fn) as float16, by moving bits: XLA:CPU would call a function for each number.

    Float16 has the bits of float8 in the same order, with an exponent that is 8 larger, also below its normal numbers.
    """
    stored = lax.bitcast_convert_type(values, jnp.uint8).astype(jnp.uint16)
    moved = lax.bitcast_convert_type(((stored & 0x80) << 8) | ((stored & 0x7F) << 7), jnp.float16)
    return moved.astype(jnp.float32) * 256
