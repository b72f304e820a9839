"""The parts of Gemma 4's layers that no other family has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cvllm_jax.models.layers.activation import ACTIVATIONS
from cvllm_jax.models.layers.attention import BlockBatch
from cvllm_jax.models.layers.linear import Embedding, Linear
from cvllm_jax.models.layers.mlp import GatedMlp
from cvllm_jax.models.layers.moe import Experts, ExpertSizes, Glu, Router
from cvllm_jax.models.layers.norm import RmsNorm, rms_normalize
from cvllm_jax.models.layers.rope import RopeTables
from pallas_kernels.kv_write import KvPages, rotate, rotate_and_write
from pallas_kernels.paged_attention import paged_attention

__all__ = ["Gemma4Attention", "Gemma4Block", "Mixture", "OwnInput", "OwnInputs"]


class Gemma4Attention(nnx.Module):
    """Grouped-query attention over a cache whose heads may be larger and more than the layer's.

    Heads of keys and values are repeated to the number of the cache's, and all heads are filled up with zeros.

    Arguments:
      has_keys: whether the layer makes keys and values; if not, those of its cache are of an earlier layer.
      values_are_keys: whether values are the keys before norm and rotation.
      cache_heads, cache_dim: heads of the cache, and the dimensions of each.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_dim: int, *,
        dtype: jnp.dtype, eps: float, bias: bool, window: int | None, has_keys: bool, values_are_keys: bool,
        cache_heads: int, cache_dim: int,
    ) -> None:  # fmt: skip
        self.heads, self.kv_heads, self.head_dim, self.eps, self.window = heads, kv_heads, head_dim, eps, window
        self.cache_heads, self.cache_dim = cache_heads, cache_dim

        def projection(count: int) -> Linear:
            return Linear(width, count * head_dim, dtype=dtype, spec=P("tp", None), bias=bias)

        self.q = None if has_keys else projection(heads)
        self.qk = projection(heads + kv_heads) if has_keys and values_are_keys else None
        self.qkv = projection(heads + 2 * kv_heads) if has_keys and not values_are_keys else None
        self.q_norm = RmsNorm(head_dim, eps=eps)
        self.k_norm = RmsNorm(head_dim, eps=eps) if has_keys else None
        self.output = Linear(heads * head_dim, width, dtype=dtype, spec=P(None, "tp"), bias=bias)

    @jax.named_scope("attention")
    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        N, H = self.heads, self.head_dim
        T = x.shape[0]
        if self.q is not None:
            q = rotate(self._filled(self.q_norm(self.q(x).reshape(T, N, H))), rope).astype(x.dtype)
        else:
            # the kernel was chosen for rotations of whole heads of the cache
            whole = 2 * rope[0].shape[-1] == self.cache_dim
            q, cache = rotate_and_write(
                self._queries_keys_values(x), rope, cache, batch.page, batch.offset,
                implementation=batch.kernels.kv_write if whole else "xla",
            )  # fmt: skip
        y = paged_attention(
            batch.blocks(q), cache.k, cache.v, batch.tables, batch.starts, batch.counts,
            scale=1.0, window=self.window, k_scales=cache.k_scales, v_scales=cache.v_scales,
            implementation=batch.kernels.attention,
        )  # fmt: skip
        return self.output(batch.tokens(y)[..., :H].reshape(T, N * H)), cache

    def _queries_keys_values(self, x: Float[Array, "T D"]) -> Float[Array, "T N+2*K H"]:
        N, K, H = self.heads, self.kv_heads, self.head_dim
        if self.qkv is not None:
            q, k, v = jnp.split(self.qkv(x).reshape(len(x), N + 2 * K, H), (N, N + K), axis=1)
        else:
            assert self.qk is not None
            q, k = jnp.split(self.qk(x).reshape(len(x), N + K, H), (N,), axis=1)
            v = k
        assert self.k_norm is not None
        k, v = self.k_norm(k), rms_normalize(v, self.eps).astype(x.dtype)
        copies = self.cache_heads // K
        return self._filled(
            jnp.concatenate([self.q_norm(q), jnp.repeat(k, copies, axis=1), jnp.repeat(v, copies, axis=1)], axis=1)
        )

    def _filled(self, heads: Float[Array, "T N H"]) -> Float[Array, "T N C"]:
        return jnp.pad(heads, ((0, 0), (0, 0), (0, self.cache_dim - self.head_dim)))


class Mixture(nnx.Module):
    """Routed experts beside the feed-forward block; experts and router see its input before its norm."""

    def __init__(self, sizes: ExpertSizes, width: int, activation: str, *, eps: float, dtype: jnp.dtype) -> None:
        self.eps = eps
        self.dense_norm, self.norm, self.post_norm = (RmsNorm(width, eps=eps) for _ in range(3))
        self.scale = nnx.Param(jnp.zeros((width,), jnp.float32), spec=P())
        self.expert_scale = nnx.Param(jnp.zeros((sizes.experts,), jnp.float32), spec=P())
        self.router = Router(width, sizes.experts, sizes.chosen)
        self.experts = Experts(sizes, width, dtype=dtype, activation=Glu(activation))

    def __call__(
        self, x: Float[Array, "T D"], dense: Float[Array, "T D"], batch: BlockBatch
    ) -> Float[Array, "T D"]:
        weights, chosen = self.router(rms_normalize(x, self.eps) * self.scale[...] * x.shape[-1] ** -0.5)
        weights *= self.expert_scale[...][chosen]
        return self.dense_norm(dense) + self.post_norm(self.experts(self.norm(x), weights, chosen, batch))


class OwnInputs(nnx.Module):
    """Inputs of P numbers for each of L layers: an embedding of their own, and a view of the common one."""

    def __init__(self, vocab: int, layers: int, size: int, width: int, *, eps: float, dtype: jnp.dtype) -> None:
        self.layers, self.size = layers, size
        self.embed = Embedding(vocab, layers * size, dtype=dtype)
        self.projection = Linear(width, layers * size, dtype=dtype, spec=P("tp", None))
        self.norm = RmsNorm(size, eps=eps)

    def __call__(self, tokens: Int[Array, "T"], x: Float[Array, "T D"]) -> Float[Array, "T L P"]:
        shape = (len(tokens), self.layers, self.size)
        of_tokens = self.embed(tokens).reshape(shape) * jnp.asarray(self.size**0.5, x.dtype)
        common = self.norm((self.projection(x) * jnp.asarray(x.shape[-1] ** -0.5, x.dtype)).reshape(shape))
        return (common + of_tokens) * jnp.asarray(2**-0.5, x.dtype)


class OwnInput(nnx.Module):
    """What a layer adds of its own input, weighed by gates that follow from the hidden state."""

    def __init__(self, width: int, size: int, activation: str, *, eps: float, dtype: jnp.dtype) -> None:
        self.activation = activation
        self.gate = Linear(width, size, dtype=dtype, spec=P("tp", None))
        self.output = Linear(size, width, dtype=dtype, spec=P(None, "tp"))
        self.norm = RmsNorm(width, eps=eps)

    def __call__(self, x: Float[Array, "T D"], own: Float[Array, "T P"]) -> Float[Array, "T D"]:
        gate = ACTIVATIONS[self.activation](self.gate(x).astype(jnp.float32))
        return self.norm(self.output((gate * own.astype(jnp.float32)).astype(x.dtype)))


class Gemma4Block(nnx.Module):
    """Attention and feed-forward with norms around each, then the layer's own input, and a factor on all of it."""

    def __init__(
        self, attention: Gemma4Attention, width: int, hidden: int, activation: str, *, eps: float, dtype: jnp.dtype,
        mixture: Mixture | None, own_input: OwnInput | None,
    ) -> None:  # fmt: skip
        self.attention_norm, self.attention_post_norm = RmsNorm(width, eps=eps), RmsNorm(width, eps=eps)
        self.mlp_norm, self.mlp_post_norm = RmsNorm(width, eps=eps), RmsNorm(width, eps=eps)
        self.attention, self.mixture, self.own_input = attention, mixture, own_input
        self.mlp = GatedMlp(width, hidden, dtype=dtype, activation=activation)
        self.scale = nnx.Param(jnp.zeros((1,), jnp.float32), spec=P())

    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables,
        own: Float[Array, "T P"] | None,
    ) -> tuple[Float[Array, "T D"], KvPages]:  # fmt: skip
        y, cache = self.attention(self.attention_norm(x), cache, batch, rope)
        x = x + self.attention_post_norm(y)
        y = self.mlp(self.mlp_norm(x))
        if self.mixture is not None:
            y = self.mixture(x, y, batch)
        x = x + self.mlp_post_norm(y)
        if self.own_input is not None and own is not None:
            x = x + self.own_input(x, own)
        return x * self.scale[...].astype(x.dtype), cache
