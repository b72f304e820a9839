"""Attention to the latent vectors of the tokens that an indexer selects (DeepSeek-V3.2, arXiv 2512.02556)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cvllm_jax.models.layers.attention import BlockBatch
from cvllm_jax.models.layers.blocks import Part
from cvllm_jax.models.layers.latent_attention import LatentVectors, halves
from cvllm_jax.models.layers.linear import Linear
from cvllm_jax.models.layers.moe import MoeMlp
from cvllm_jax.models.layers.norm import LayerNorm
from cvllm_jax.models.layers.rope import RopeTables
from pallas_kernels.kv_write import KvPages, rotate, rotate_and_write_keys
from pallas_kernels.paged_attention import attend_to_selected, select_tokens

__all__ = ["IndexedAttention", "IndexedBlock", "Indexer", "Places"]

#: Where in the cache the tokens lie that each token of the step attends to; L of them at most.
type Places = Int[Array, "T L"]


class Indexer(nnx.Module):
    """A small attention whose logits say which tokens the layer attends to.

    Weights and logits are in f32: a difference in rounding would select other tokens. The reference implementation
    has queries and keys in fp8 behind a Hadamard transform, which changes no product of theirs.

    Arguments:
      vector: width of what the layer's queries are made of, and the indexer's too.
      heads, head_dim: of its queries. Its keys have one head.
      rotated: dimensions that are rotated, the first ones.
      interleaved: whether neighbouring dimensions are rotated together.
      most: tokens that it selects.
    """

    def __init__(
        self, width: int, vector: int, heads: int, head_dim: int, *, rotated: int, interleaved: bool, most: int,
        dtype: jnp.dtype,
    ) -> None:  # fmt: skip
        self.heads, self.rotated, self.interleaved, self.most = heads, rotated, interleaved, most
        self.scale = (heads * head_dim) ** -0.5
        self.q = Linear(vector, heads * head_dim, dtype=dtype, spec=P(None, None))
        self.k = Linear(width, head_dim, dtype=dtype, spec=P(None, None))
        self.k_norm = LayerNorm(head_dim, eps=1e-6)
        self.weights = nnx.Param(jnp.zeros((heads, width), jnp.float32), spec=P())

    def keys(self, x: Float[Array, "T D"], rope: RopeTables) -> Float[Array, "T 1 I"]:
        return self._rotated(self.k_norm(self.k(x))[:, None], rope)

    @jax.named_scope("indexer")
    def __call__(
        self, x: Float[Array, "T D"], vector: Float[Array, "T L"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> Places:
        """The tokens for each of these; the keys of these are in the cache already."""
        q = self._rotated(self.q(vector).reshape(len(x), self.heads, -1), rope)
        weights = jnp.einsum("td,md->tm", x.astype(jnp.float32), self.weights[...], precision=lax.Precision.HIGHEST)
        places = select_tokens(
            batch.blocks(q), batch.blocks(weights * self.scale), cache.v,
            batch.tables, batch.starts, batch.counts, most=self.most, scales=cache.v_scales,
        )  # fmt: skip
        return batch.tokens(places)

    def _rotated(self, x: Float[Array, "T M I"], rope: RopeTables) -> Float[Array, "T M I"]:
        if self.interleaved:
            x = jnp.concatenate([halves(x[..., : self.rotated]), x[..., self.rotated :]], axis=-1)
        return rotate(x, rope).astype(x.dtype)


class IndexedAttention(LatentVectors):
    """As :class:`LatentAttention`, to selected tokens.

    The cache has the indexer's keys where values would be.

    Arguments:
      indexer: None attends to the tokens that the layer before did (arXiv 2603.12201).

    The other arguments are those of :class:`LatentVectors`.
    """

    def __init__(self, *sizes: int, indexer: Indexer | None, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.indexer = indexer

    @jax.named_scope("attention")
    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables, places: Places | None
    ) -> tuple[Float[Array, "T D"], KvPages, Places]:
        vector = self.query_vector(x)
        index = None if self.indexer is None else self.indexer.keys(x, rope)
        q, cache = rotate_and_write_keys(
            self.queries(vector), self.keys(x), rope, cache, batch.page, batch.offset, beside=index
        )
        if self.indexer is not None:
            places = self.indexer(x, vector, cache, batch, rope)
        assert places is not None, "the first layer has an indexer"
        y = attend_to_selected(
            batch.blocks(q), cache.k, batch.blocks(places), batch.starts, batch.counts,
            scale=self.scale, scales=cache.k_scales,
        )  # fmt: skip
        return self.outputs(batch.tokens(y)), cache, places


class IndexedBlock(nnx.Module):
    """As :class:`PreNormBlock`, or with experts as :class:`MoeBlock`, handing on which tokens were selected."""

    def __init__(self, attention_norm: Part, attention: IndexedAttention, mlp_norm: Part, mlp: Part | MoeMlp) -> None:
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp

    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables, places: Places | None
    ) -> tuple[Float[Array, "T D"], KvPages, Places]:
        y, cache, places = self.attention(self.attention_norm(x), cache, batch, rope, places)
        x = x + y
        normed = self.mlp_norm(x)
        y = self.mlp(normed, batch) if isinstance(self.mlp, MoeMlp) else self.mlp(normed)
        return x + y, cache, places
