"""Weights of few bits: what is stored, how to get there and back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

__all__ = ["Method", "QuantizedWeight", "dequantize", "in_bytes", "quantize"]

Method = Literal["int8", "int4", "fp8", "mxfp4"]

#: Of each method the type that stores it and the largest magnitude that :func:`quantize` uses. Int4 could hold -8
#: too; a symmetric range keeps the error of both signs alike. MXFP4 is that of the OCP's Microscaling Formats 1.0 if
#: the scales are powers of two, of groups of 32.
STORAGE: dict[Method, tuple[Any, float]] = {
    "int8": (jnp.int8, 127.0),
    "int4": (jnp.int4, 7.0),
    "fp8": (jnp.float8_e4m3fn, 448.0),
    "mxfp4": (jnp.float4_e2m1fn, 6.0),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight matrix ``values * scales + offsets``, a pytree of two or three arrays; or a stack of them, ``[E, ...]``.

    Attributes:
      values: ``[O, I]``, int8, int4, float8_e4m3fn or float4_e2m1fn; the type says the method. Int4 is JAX's own type
        in the order of the channels: XLA packs two into a byte of device memory, TMA copies them, and the conversion
        that the kernels use works on eight neighbours of a register. Every value of the type is allowed, -8 and -128
        too.
      scales: ``[G, O]``, float32, float16, bfloat16 or float8_e8m0fnu (powers of two); row g scales the input channels
        ``g * I / G`` to ``(g + 1) * I / G``. G = 1 is one scale for an output channel. The output channels come last,
        because TMA copies the scales of 64 of them for any number of groups (the stride of ``[O, G]`` need not be a
        multiple of 16 bytes).
      offsets: shape and type of ``scales``, what is added to the weights of each group; None for nothing. Formats whose
        range is not centred on 0 need them: ``scale * (q - zero)`` is ``scale * (q - 8) + scale * (8 - zero)``.
      bytes_of: a method whose values are held in uint8, as :func:`in_bytes` makes them; None: in their own type. XLA
        reads a slice of such an array, one expert's matrix for example, where it converts all of the others.
    """

    values: Num[Array, "O I"]
    scales: Float[Array, "G O"]
    offsets: Float[Array, "G O"] | None = None
    bytes_of: Method | None = field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """Output channels and input channels."""
        outputs, inputs = self.values.shape[-2:]
        return outputs, inputs * (2 if self.bytes_of in ("int4", "mxfp4") else 1)

    @property
    def group_size(self) -> int | None:
        """Input channels that share a scale; None for one scale a row."""
        groups = self.scales.shape[-2]
        return None if groups == 1 else self.shape[1] // groups

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that the weight takes."""
        values = self.values.size * bits(self.values.dtype) // 8
        groups = self.scales.size * (1 if self.offsets is None else 2)
        return values + groups * jnp.dtype(self.scales.dtype).itemsize


def quantize(
    weight: Float[Array, "O I"], method: Method, group_size: int | None = None, *, scale_dtype: Any = jnp.float32
) -> QuantizedWeight:
    """Round a weight to few bits, the largest magnitude of a row or a group to the largest of the type.

    Arguments:
      weight: finite; any float type. Rounding works in float32.
      method: ``"int8"``, ``"int4"``, ``"fp8"`` (float8_e4m3fn) or ``"mxfp4"`` (float4_e2m1fn).
      group_size: input channels that share a scale; None for one scale a row.
      scale_dtype: float32, or bfloat16, which int4 in groups of 32 wants: there a float32 scale takes a quarter of
        the bytes of its values. Values are rounded to the scale as it is stored.

    Raises:
      ValueError: the method is unknown, or the group size does not divide the input channels.
    """
    if method not in STORAGE:
        raise ValueError(f"the method must be one of {', '.join(get_args(Method))}, not {method!r}")
    outputs, inputs = weight.shape
    size = inputs if group_size is None else group_size
    if size < 1 or inputs % size:
        raise ValueError(f"{inputs} input channels do not divide into groups of {size}")
    dtype, largest = STORAGE[method]
    grouped = weight.astype(jnp.float32).reshape(outputs, inputs // size, size)
    scales = (jnp.abs(grouped).max(-1) / largest).astype(scale_dtype)
    # a group of zeros, or of numbers so small that their scale is 0
    scales = jnp.where(scales > 0, scales, jnp.ones_like(scales))
    scaled = jnp.clip(grouped / scales[..., None].astype(jnp.float32), -largest, largest)
    values = jnp.round(scaled) if jnp.issubdtype(dtype, jnp.integer) else scaled
    return QuantizedWeight(values.reshape(outputs, inputs).astype(dtype), scales.T)


def in_bytes(weight: QuantizedWeight) -> QuantizedWeight:
    """The same weight with its values in uint8: two of 4 bits in a byte, the even channel's in the low half."""
    method = next(method for method, (dtype, _) in STORAGE.items() if weight.values.dtype == dtype)
    if method == "int8":
        return weight
    values = weight.values
    if method != "fp8":
        values = values.reshape(*values.shape[:-1], -1, 2)
    return replace(weight, values=lax.bitcast_convert_type(values, jnp.uint8), bytes_of=method)


def own_values(weight: QuantizedWeight) -> Num[Array, "O I"]:
    """The values in the type of their method."""
    if weight.bytes_of is None:
        return weight.values
    values = lax.bitcast_convert_type(weight.values, STORAGE[weight.bytes_of][0])
    return values.reshape(*weight.values.shape[:-1], -1)


def dequantize(weight: QuantizedWeight, dtype: Any = jnp.float32) -> Float[Array, "O I"]:
    """The matrix that a quantised weight stands for; worked out in float32 and rounded once, to ``dtype``."""
    (outputs, inputs), groups = weight.shape, len(weight.scales)
    values = own_values(weight).astype(jnp.float32).reshape(outputs, groups, inputs // groups)
    values = values * weight.scales.T[..., None].astype(jnp.float32)
    if weight.offsets is not None:
        values = values + weight.offsets.T[..., None].astype(jnp.float32)
    return values.astype(dtype).reshape(outputs, inputs)


def bits(dtype: Any) -> int:
    """Bits of an element in device memory."""
    return jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).bits
