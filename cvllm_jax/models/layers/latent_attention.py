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

__all__ = ["LatentAttention", "LatentVectors", "halves"]


class LatentVectors(nnx.Module):
    """Queries and keys of attention to latent vectors, and what becomes of its results.

    The cache holds for each token the latent vector of C numbers and R rotated ones that all heads share, as one key of
    R + C numbers. Queries are multiplied with the matrix that would make keys of the latent vector, and what attention
    gives with the one that would make values.

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

    def query_vector(self, x: Float[Array, "T D"]) -> Float[Array, "T L"]:
        """What queries are made of."""
        return self.q_norm(self.q_a(x)) if self.has_query_vector else x

    def queries(self, vector: Float[Array, "T L"]) -> Float[Array, "T N H"]:
        """To be rotated still."""
        q = self.q(vector).reshape(len(vector), self.heads, -1)
        q, rotated = jnp.split(q, (self.plain,), axis=-1)
        to_keys = self.kv_b[...][:, : self.plain]
        return jnp.concatenate(
            [halves(rotated) if self.interleaved else rotated, jnp.einsum("tnh,nhc->tnc", q, to_keys)], axis=-1
        )

    def keys(self, x: Float[Array, "T D"]) -> Float[Array, "T 1 H"]:
        """To be rotated still."""
        latent, rotated = jnp.split(self.kv_a(x), (self.rank,), axis=-1)
        return jnp.concatenate([halves(rotated) if self.interleaved else rotated, self.kv_norm(latent)], -1)[:, None]

    def outputs(self, y: Float[Array, "T N H"]) -> Float[Array, "T D"]:
        """Of weighted sums of keys."""
        y = jnp.einsum("tnc,nvc->tnv", y[:, :, self.rotated :], self.kv_b[...][:, self.plain :])
        return self.output(y.reshape(len(y), -1))


class LatentAttention(LatentVectors):
    """Self-attention whose keys and values are products with one latent vector a token; see :class:`LatentVectors`."""

    @jax.named_scope("attention")
    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        q, cache = rotate_and_write_keys(
            self.queries(self.query_vector(x)), self.keys(x), rope, cache, batch.page, batch.offset
        )
        y = paged_attention(
            batch.blocks(q), cache.k, cache.k, batch.tables, batch.starts, batch.counts,
            scale=self.scale, k_scales=cache.k_scales, v_scales=cache.k_scales,
            implementation=batch.kernels.attention,
        )  # fmt: skip
        return self.outputs(batch.tokens(y)), cache


def halves(x: Float[Array, "*T R"]) -> Float[Array, "*T R"]:
    """Interleaved dimensions in the order in which i and i + R/2 are rotated together."""
    return jnp.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)
