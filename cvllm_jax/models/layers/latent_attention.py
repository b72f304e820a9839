"""Attention to a latent vector for each token (DeepSeek-V2, arXiv 2405.04434)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from cvllm_jax.models.layers.attention import BlockBatch
from cvllm_jax.models.layers.linear import Linear
from cvllm_jax.models.layers.norm import RmsNorm
from cvllm_jax.models.layers.rope import RopeTables
from pallas_kernels.kv_write import KvPages, rotate_and_write_keys
from pallas_kernels.paged_attention import paged_attention

__all__ = ["LatentAttention"]


class LatentAttention(nnx.Module):
    """Self-attention whose keys and values are products with one latent vector of C numbers a token.

    The cache holds the latent vector and R rotated numbers that all heads share, as one key of R + C numbers. Queries
    are multiplied with the matrix that would make keys of it, and what comes out with the one that would make values.

    Arguments:
      plain, rotated: dimensions of a query that are not rotated, and those that are.
      values: dimensions of a head's value.
      rank: C.
      query_rank: queries are made of a vector of so many numbers; None: of the input.
      bias: whether the products with the input, and the output, have biases.
      interleaved: whether neighbouring dimensions are rotated together.
    """

    #: Of the norms of both vectors, whatever the model's other norms have.
    EPS = 1e-6

    def __init__(
        self, width: int, heads: int, *, plain: int, rotated: int, values: int, rank: int, query_rank: int | None,
        scale: float, dtype: jnp.dtype, bias: bool = False, interleaved: bool = True,
    ) -> None:  # fmt: skip
        self.heads, self.plain, self.rotated, self.rank = heads, plain, rotated, rank
        self.scale, self.interleaved = scale, interleaved
        outputs = heads * (plain + rotated)
        if query_rank is None:
            self.q = Linear(width, outputs, dtype=dtype, spec=P("tp", None))
        else:
            self.q_a = Linear(width, query_rank, dtype=dtype, spec=P(None, None), bias=bias)
            self.q_norm = RmsNorm(query_rank, eps=self.EPS)
            self.q = Linear(query_rank, outputs, dtype=dtype, spec=P("tp", None))
        self.has_query_vector = query_rank is not None
        self.kv_a = Linear(width, rank + rotated, dtype=dtype, spec=P(None, None), bias=bias)
        self.kv_norm = RmsNorm(rank, eps=self.EPS)
        self.kv_b = nnx.Param(jnp.zeros((heads, plain + values, rank), dtype), spec=P("tp", None, None))
        self.output = Linear(heads * values, width, dtype=dtype, spec=P(None, "tp"), bias=bias)

    @jax.named_scope("attention")
    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        N, T, B = self.heads, x.shape[0], batch.starts.shape[0]
        q = self.q(self.q_norm(self.q_a(x)) if self.has_query_vector else x).reshape(T, N, -1)
        q, q_rotated = jnp.split(q, (self.plain,), axis=-1)
        latent, k_rotated = jnp.split(self.kv_a(x), (self.rank,), axis=-1)
        to_keys, to_values = jnp.split(self.kv_b[...], (self.plain,), axis=1)
        q = jnp.concatenate([self._halves(q_rotated), jnp.einsum("tnh,nhc->tnc", q, to_keys)], axis=-1)
        k = jnp.concatenate([self._halves(k_rotated), self.kv_norm(latent)], axis=-1)[:, None]
        q, cache = rotate_and_write_keys(q, k, rope, cache, batch.page, batch.offset)
        y = paged_attention(
            q.reshape(B, T // B, N, -1), cache.k, cache.k, batch.tables, batch.starts, batch.counts, scale=self.scale,
            k_scales=cache.k_scales, v_scales=cache.k_scales, implementation=batch.kernels.attention,
        )  # fmt: skip
        y = jnp.einsum("tnc,nvc->tnv", y.reshape(T, N, -1)[:, :, self.rotated :], to_values)
        return self.output(y.reshape(T, -1)), cache

    def _halves(self, x: Float[Array, "*T R"]) -> Float[Array, "*T R"]:
        """The dimensions in the order in which i and i + R/2 are rotated together."""
        return jnp.concatenate([x[..., ::2], x[..., 1::2]], axis=-1) if self.interleaved else x
