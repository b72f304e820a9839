"""The quantised matmul in C++ for CPUs (``pallas_kernels/native/int8_matmul.cc``)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.quantized_matmul.weight import QuantizedWeight

__all__ = ["check", "does", "matmul"]

#: Rows of bfloat16 from which XLA is as fast: its products of bfloat16 need no second int8 number of an activation.
_MANY_ROWS = 64

_FLOATS = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))


def check(x: Any, weight: QuantizedWeight) -> None:
    """Raise ValueError, saying what the kernel does, for shapes and types that it does not do."""
    inputs = weight.shape[1]
    if weight.values.dtype != jnp.int8 or weight.bytes_of is not None or weight.values.ndim != 2:
        raise ValueError("the kernel multiplies int8 matrices")
    if weight.scales.shape[0] != 1 or weight.offsets is not None or weight.scales.dtype != jnp.float32:
        raise ValueError("the kernel takes one float32 scale for each output channel, and no offsets")
    if jnp.dtype(x.dtype) not in _FLOATS:
        raise ValueError(f"the kernel multiplies float32 and bfloat16 with int8, not {x.dtype}")
    if inputs % 4 or inputs > 1 << 16:
        raise ValueError(f"the kernel wants a multiple of 4 input channels up to 65536, not {inputs}")


def does(x: Any, weight: QuantizedWeight) -> bool:
    """Whether the kernel does these shapes and types, and faster than XLA."""
    if x.shape[0] >= _MANY_ROWS and x.dtype == jnp.bfloat16:
        return False
    try:
        check(x, weight)
    except ValueError:
        return False
    return True


def matmul(x: Float[Array, "T I"], weight: QuantizedWeight, *, out_dtype: Any = None) -> Float[Array, "T O"]:
    """See :func:`pallas_kernels.quantized_matmul.quantized_matmul`; activations in 15 bits, as in ``cpu.py``.

    Raises:
      ValueError: the kernel does not do these shapes or types.
    """
    check(x, weight)
    dtype = jnp.dtype(x.dtype if out_dtype is None else out_dtype)
    made = dtype if dtype in _FLOATS else jnp.dtype(jnp.float32)
    y = jax.ShapeDtypeStruct((x.shape[0], weight.shape[0]), made)
    multiply = jax.ffi.ffi_call("cvllm_int8_matmul", y)
    return multiply(x, weight.values, weight.scales[0]).astype(dtype)
