"""Gated DeltaNet (arXiv 2412.06464): attention with a memory of one matrix a head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from cvllm_jax.models.layers.activation import ACTIVATIONS
from cvllm_jax.models.layers.attention import BlockBatch
from cvllm_jax.models.layers.linear import Linear
from cvllm_jax.models.layers.norm import RmsNorm
from cvllm_jax.models.layers.rope import RopeTables
from cvllm_jax.models.recurrent import RecurrentLayers
from pallas_kernels.gated_delta import RecurrentState, attend, convolve

__all__ = ["GatedDeltaNet"]


class GatedDeltaNet(nnx.Module):
    """Queries, keys and values go through a short convolution; what queries read is normalised, and gated by z.

    Arguments:
      activation: of what the convolution gives.
      by_key_head: whether the rows of ``qkvz`` and ``ba`` are those of one key head after another, each with its q, k
        and its values' v and z, or b and a; else all q come first, then all k, v and z, or b and a.
    """

    def __init__(
        self, width: int, sizes: RecurrentLayers, *, dtype: jnp.dtype, norm_eps: float, activation: str,
        by_key_head: bool,
    ) -> None:  # fmt: skip
        s = self.sizes = sizes
        self.activation, self.by_key_head = activation, by_key_head
        self.qkvz = Linear(width, s.channels + s.heads * s.value_dim, dtype=dtype, spec=P("tp", None))
        self.ba = Linear(width, 2 * s.heads, dtype=dtype, spec=P("tp", None))
        self.convolution = nnx.Param(jnp.zeros((s.channels, 1, s.window), dtype), spec=P())
        self.log_rate = nnx.Param(jnp.zeros((s.heads,), jnp.float32), spec=P())
        self.rate_bias = nnx.Param(jnp.zeros((s.heads,), jnp.float32), spec=P())
        self.norm = RmsNorm(s.value_dim, eps=norm_eps)
        self.output = Linear(s.heads * s.value_dim, width, dtype=dtype, spec=P(None, "tp"))

    @jax.named_scope("gated_delta_net")
    def __call__(
        self, x: Float[Array, "T D"], cache: RecurrentState, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], RecurrentState]:
        """What it knows of positions is their order: ``rope`` is for layers that rotate."""
        s, T = self.sizes, x.shape[0]
        assert batch.slots is not None
        places = batch.slots, batch.starts, batch.counts
        qkv, z, b, a = self._projected(x)
        qkv, inputs = convolve(batch.blocks(qkv), self.convolution[...][:, 0], cache.inputs, *places)
        qkv = ACTIVATIONS[self.activation](qkv)
        keys = s.key_heads * s.key_dim
        q, k, v = jnp.split(qkv, (keys, 2 * keys), axis=-1)
        q, k = (self._for_each_head(_unit(part.reshape(*part.shape[:2], s.key_heads, s.key_dim))) for part in (q, k))
        decay = -jnp.exp(self.log_rate[...]) * jax.nn.softplus(a.astype(jnp.float32) + self.rate_bias[...])
        y, memory = attend(
            q * s.key_dim**-0.5, k, v.reshape(*v.shape[:2], s.heads, s.value_dim), batch.blocks(decay),
            batch.blocks(jax.nn.sigmoid(b.astype(jnp.float32))), cache.memory, *places,
        )  # fmt: skip
        y = self.norm(batch.tokens(y).reshape(T, s.heads, s.value_dim)) * jax.nn.silu(z.astype(jnp.float32))
        return self.output(y.astype(x.dtype).reshape(T, -1)), RecurrentState(inputs, memory)

    def _projected(self, x: Float[Array, "T D"]) -> tuple[Array, Array, Array, Array]:
        """q, k and v of all heads ``[T, C]``, z ``[T, N, V]``, b and a ``[T, N]``."""
        s, T = self.sizes, x.shape[0]
        qkvz, ba = self.qkvz(x), self.ba(x)
        if not self.by_key_head:
            qkv, z = jnp.split(qkvz, (s.channels,), axis=1)
            b, a = jnp.split(ba, 2, axis=1)
            return qkv, z.reshape(T, s.heads, s.value_dim), b, a
        values = s.heads // s.key_heads * s.value_dim
        cuts = (s.key_dim, 2 * s.key_dim, 2 * s.key_dim + values)
        q, k, v, z = jnp.split(qkvz.reshape(T, s.key_heads, -1), cuts, axis=2)
        b, a = jnp.split(ba.reshape(T, s.key_heads, -1), 2, axis=2)
        qkv = jnp.concatenate([part.reshape(T, -1) for part in (q, k, v)], axis=1)
        return qkv, z.reshape(T, s.heads, s.value_dim), b.reshape(T, -1), a.reshape(T, -1)

    def _for_each_head(self, x: Float[Array, "B Q G K"]) -> Float[Array, "B Q N K"]:
        return jnp.repeat(x, self.sizes.heads // self.sizes.key_heads, axis=2)


def _unit(x: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
    """Vectors of length 1."""
    return x * lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-6)
