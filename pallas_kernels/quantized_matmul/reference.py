"""The quantised matmul in XLA operations: what runs where nothing faster does, and what the others are held to."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.quantized_matmul.weight import QuantizedWeight, dequantize, own_values

__all__ = ["matmul"]


def matmul(x: Float[Array, "T I"], weight: QuantizedWeight, *, out_dtype: Any = None) -> Float[Array, "T O"]:
    """``x @ dequantize(weight).T``; see :func:`pallas_kernels.quantized_matmul.quantized_matmul`.

    One scale a row is applied to the float32 product: bfloat16 holds every int8, int4 and float8 value, so nothing
    is rounded before. Scales and offsets of groups go into the weight, which is then rounded to the type of ``x``.
    """
    per_row = weight.group_size is None and weight.offsets is None
    values = own_values(weight).astype(x.dtype) if per_row else dequantize(weight, x.dtype)
    # both contract their last axis: as the weight lies in memory
    y = lax.dot_general(x, values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    if per_row:
        y = y * weight.scales[0].astype(jnp.float32)
    return y.astype(x.dtype if out_dtype is None else out_dtype)
