"""Normalisation over the last axis."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

__all__ = ["LayerNorm", "RmsNorm", "rms_normalize"]


def rms_normalize(x: Float[Array, "*T D"], eps: float) -> Float[Array, "*T D"]:
    """Root mean square normalisation without a gain, in and to f32."""
    y = x.astype(jnp.float32)
    return y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)


class RmsNorm(nnx.Module):
    """Root mean square normalisation (Zhang and Sennrich, arXiv 1910.07467), computed in f32."""

    def __init__(self, width: int, *, eps: float) -> None:
        self.weight = nnx.Param(jnp.zeros((width,), jnp.float32), spec=P())
        self.eps = eps

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
        return (rms_normalize(x, self.eps) * self.weight[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al., arXiv 1607.06450), computed in f32."""

    def __init__(self, width: int, *, eps: float, bias: bool = True) -> None:
        self.weight = nnx.Param(jnp.zeros((width,), jnp.float32), spec=P())
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32), spec=P()) if bias else None
        self.eps = eps

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
        y = x.astype(jnp.float32)
        y -= jnp.mean(y, axis=-1, keepdims=True)
        y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps) * self.weight[...]
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)
