"""Feed-forward blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from cvllm_jax.models.layers.activation import ACTIVATIONS
from cvllm_jax.models.layers.linear import Linear

__all__ = ["GatedMlp", "Mlp"]


class GatedMlp(nnx.Module):
    """``down(act(gate(x)) * up(x))`` (GLU variants, arXiv 2002.05202); gate and up are one matrix, gate first."""

    def __init__(
        self, width: int, hidden: int, *, dtype: jnp.dtype, bias: bool = False, activation: str = "silu"
    ) -> None:
        self.activation = activation
        self.gate_up = Linear(width, 2 * hidden, dtype=dtype, spec=P("tp", None), bias=bias)
        self.down = Linear(hidden, width, dtype=dtype, spec=P(None, "tp"), bias=bias)

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)
        gate, up = gate.astype(jnp.float32), up.astype(jnp.float32)  # XLA:CPU emulates bf16 arithmetic
        return self.down((ACTIVATIONS[self.activation](gate) * up).astype(x.dtype))


class Mlp(nnx.Module):
    """``down(act(up(x)))``."""

    def __init__(self, width: int, hidden: int, *, dtype: jnp.dtype, bias: bool, activation: str) -> None:
        self.activation = activation
        self.up = Linear(width, hidden, dtype=dtype, spec=P("tp", None), bias=bias)
        self.down = Linear(hidden, width, dtype=dtype, spec=P(None, "tp"), bias=bias)

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        hidden = ACTIVATIONS[self.activation](self.up(x).astype(jnp.float32))  # as above
        return self.down(hidden.astype(x.dtype))
