"""Matrix products with weights stored ``[out, in]``, as checkpoints have them and as CPUs read them fastest."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

__all__ = ["Embedding", "Linear", "project"]


def project(
    x: Float[Array, "T I"], weight: Float[Array, "O I"], out_dtype: DTypeLike | None = None
) -> Float[Array, "T O"]:
    """``x @ weight.T`` without a transpose: contracts the last axis of both."""
    rows = x.shape[0]
    if rows == 1 and weight.dtype != jnp.float32:
        # XLA:CPU converts a whole bf16 weight to f32 for a product with a single row, which takes 10 times as long
        x = jnp.concatenate([x, x])
    y = lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=out_dtype or x.dtype)
    return y[:rows]


class Linear(nnx.Module):
    """``x @ weight.T + bias``. ``spec`` says how the weight is split over the mesh's ``tp`` axis."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, spec: P, bias: bool = False) -> None:
        self.weight = nnx.Param(jnp.zeros((outputs, inputs), dtype), spec=spec)
        self.bias = nnx.Param(jnp.zeros((outputs,), dtype), spec=P(spec[0])) if bias else None

    def __call__(self, x: Float[Array, "T I"], out_dtype: DTypeLike | None = None) -> Float[Array, "T O"]:
        y = project(x, self.weight[...], out_dtype)
        return y if self.bias is None else y + self.bias[...]


class Embedding(nnx.Module):
    """Token vectors; ``attend`` is the tied output head."""

    def __init__(self, vocab: int, width: int, *, dtype: jnp.dtype) -> None:
        self.weight = nnx.Param(jnp.zeros((vocab, width), dtype), spec=P("tp", None))

    def __call__(self, tokens: Int[Array, "T"]) -> Float[Array, "T D"]:
        return self.weight[...][tokens]

    def attend(self, x: Float[Array, "T D"]) -> Float[Array, "T V"]:
        return project(x, self.weight[...], jnp.float32)
