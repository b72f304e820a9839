"""Matrix products with weights stored ``[out, in]``, as checkpoints have them and as CPUs read them fastest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.quantized_matmul import Implementation, Method, QuantizedWeight, quantized_matmul
from pallas_kernels.quantized_matmul.weight import STORAGE

__all__ = ["Embedding", "Linear", "WeightLayout", "Weighted", "project"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLayout:
    """How a quantised weight is stored (:class:`pallas_kernels.quantized_matmul.QuantizedWeight`) and multiplied."""

    method: Method
    group_size: int | None = None
    """Input channels that share a scale; None for one scale a row."""
    offsets: bool = False
    """Whether each group has an offset beside its scale."""
    in_bytes: bool = False
    """Whether values of 4 bits and float8 are held in bytes: XLA on CPUs converts arrays of their own types whole."""
    implementation: Implementation = "auto"

    @property
    def bytes_of(self) -> Method | None:
        """The method whose values are held in bytes; None: in their own type."""
        return self.method if self.in_bytes and self.method != "int8" else None

    def arrays(self, outputs: int, inputs: int) -> tuple[tuple[tuple[int, int], Any], tuple[tuple[int, int], Any]]:
        """Shape and type of the values, and of the scales and offsets.

        Raises:
          ValueError: the group size does not divide the input channels, or two values do not share a byte.
        """
        size = self.group_size or inputs
        if inputs % size:
            raise ValueError(f"{inputs} input channels do not divide into groups of {size}")
        # a float32 scale for every 32 int4 values would be a quarter of their bytes; files have float16 there, too
        scale = jnp.float16 if size < min(inputs, 128) and self.method != "fp8" else jnp.float32
        groups = ((inputs // size, outputs), jnp.float8_e8m0fnu if self.method == "mxfp4" else scale)
        if self.bytes_of is None:
            return ((outputs, inputs), STORAGE[self.method][0]), groups
        if self.method != "fp8" and inputs % 2:
            raise ValueError(f"{inputs} input channels of 4 bits do not divide into bytes")
        return ((outputs, inputs if self.method == "fp8" else inputs // 2), jnp.uint8), groups


def project(
    x: Float[Array, "T I"],
    weight: Float[Array, "O I"] | QuantizedWeight,
    out_dtype: DTypeLike | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "T O"]:
    """``x @ weight.T`` without a transpose: contracts the last axis of both.

    Arguments:
      implementation: of the product with a quantised weight.
    """
    if isinstance(weight, QuantizedWeight):
        return quantized_matmul(x, weight, implementation=implementation, out_dtype=out_dtype)
    rows = x.shape[0]
    if rows == 1 and weight.dtype != jnp.float32:
        # XLA:CPU converts a whole bf16 weight to f32 for a product with a single row, which takes 10 times as long
        x = jnp.concatenate([x, x])
    y = lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=out_dtype or x.dtype)
    return y[:rows]


class Weighted(nnx.Module):
    """A weight ``[out, in]`` or a stack of them, plain or quantised. ``spec`` splits it over the mesh's ``tp`` axis."""

    def __init__(self, shape: tuple[int, ...], dtype: jnp.dtype, spec: P) -> None:
        self.weight = nnx.Param(jnp.zeros(shape, dtype), spec=spec)
        self.scales: nnx.Param[Array] | None = nnx.data(None)
        self.offsets: nnx.Param[Array] | None = nnx.data(None)
        self.layout: WeightLayout | None = None

    def quantize(self, layout: WeightLayout) -> None:
        """Have room for a quantised weight instead; what the weight was is lost."""
        *stack, outputs, inputs = self.weight.shape
        (shape, dtype), (groups, scale_dtype) = layout.arrays(outputs, inputs)
        spec = self.weight.get_metadata("spec")
        self.layout = layout
        self.weight = nnx.Param(jnp.zeros((*stack, *shape), dtype), spec=spec)
        # a single group belongs to every part of the input channels
        spec = P(*spec[:-2], spec[-1] if groups[0] > 1 else None, spec[-2])
        self.scales = nnx.data(nnx.Param(jnp.zeros((*stack, *groups), scale_dtype), spec=spec))
        if layout.offsets:
            self.offsets = nnx.data(nnx.Param(jnp.zeros((*stack, *groups), scale_dtype), spec=spec))

    @property
    def quantized(self) -> QuantizedWeight | None:
        """The weight, if it is quantised."""
        if self.layout is None or self.scales is None:
            return None
        offsets = None if self.offsets is None else self.offsets[...]
        return QuantizedWeight(self.weight[...], self.scales[...], offsets, self.layout.bytes_of)

    def project(self, x: Float[Array, "T I"], out_dtype: DTypeLike | None = None) -> Float[Array, "T O"]:
        weight = self.quantized
        if weight is None or self.layout is None:
            return project(x, self.weight[...], out_dtype)
        return project(x, weight, out_dtype, self.layout.implementation)


class Linear(Weighted):
    """``x @ weight.T + bias``."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, spec: P, bias: bool = False) -> None:
        super().__init__((outputs, inputs), dtype, spec)
        self.bias = nnx.Param(jnp.zeros((outputs,), dtype), spec=P(spec[0])) if bias else None

    def __call__(self, x: Float[Array, "T I"], out_dtype: DTypeLike | None = None) -> Float[Array, "T O"]:
        y = self.project(x, out_dtype)
        return y if self.bias is None else y + self.bias[...]


class Embedding(Weighted):
    """Token vectors; ``attend`` is the tied output head. Quantised, each vector has one scale."""

    def __init__(self, vocab: int, width: int, *, dtype: jnp.dtype) -> None:
        super().__init__((vocab, width), dtype, P("tp", None))
        self.dtype = dtype

    def __call__(self, tokens: Int[Array, "T"]) -> Float[Array, "T D"]:
        vectors = self.weight[...][tokens]
        if self.scales is None:
            return vectors
        return (vectors.astype(jnp.float32) * self.scales[...][0, tokens, None]).astype(self.dtype)

    def attend(self, x: Float[Array, "T D"]) -> Float[Array, "T V"]:
        return self.project(x, jnp.float32)
