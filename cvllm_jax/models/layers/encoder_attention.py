"""Grouped-query attention inside whole texts, without a cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from cvllm_jax.models.layers.attention import Attention
from cvllm_jax.models.layers.rope import RopeTables
from pallas_kernels.kv_write.reference import rotate

__all__ = ["EncoderAttention", "TextBatch"]

#: Queries whose scores are held at once: those of a long text with itself would not fit.
QUERIES = 512


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class TextBatch:
    """B texts of L tokens each, of which the first ``counts`` are real (T = B * L)."""

    counts: Int[Array, "B"]
    bidirectional: bool = field(metadata={"static": True})
    """Whether tokens see those after them too."""


class EncoderAttention(Attention):
    """:class:`Attention` of the tokens of texts that are all there at once.

    A window reaches as far forward as back where tokens see those after them.
    """

    @jax.named_scope("attention")
    def __call__(
        self, x: Float[Array, "T D"], cache: Any, batch: Any, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], Any]:
        """``batch`` is a :class:`TextBatch`; the cache is handed on."""
        N, K, H = self.heads, self.kv_heads, self.head_dim
        B = batch.counts.shape[0]
        L = x.shape[0] // B
        q, k, v = jnp.split(self.heads_of(x), (N, N + K), axis=1)
        q, k = (rotate(part, rope).astype(x.dtype) for part in (q, k))
        q, k, v = q.reshape(B, L, K, N // K, H), k.reshape(B, L, K, H), v.reshape(B, L, K, H)

        def attend(start: int | Int[Array, ""], q: Float[Array, "B Q K G H"]) -> Float[Array, "B Q K G H"]:
            scores = jnp.einsum("bqkgh,bskh->bkgqs", q, k, preferred_element_type=jnp.float32) * self.scale
            if self.soft_cap is not None:
                scores = jnp.tanh(scores / self.soft_cap) * self.soft_cap
            seen = self._seen(start + jnp.arange(q.shape[1]), L, batch)
            weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
            return jnp.einsum("bkgqs,bskh->bqkgh", weights.astype(v.dtype), v)

        if L <= QUERIES:
            y = attend(0, q)
        else:
            blocks = -(-L // QUERIES)
            padded = jnp.pad(q, ((0, 0), (0, blocks * QUERIES - L), (0, 0), (0, 0), (0, 0)))
            parts = jnp.moveaxis(padded.reshape(B, blocks, QUERIES, K, N // K, H), 1, 0)
            y = lax.map(lambda part: attend(*part), (jnp.arange(blocks) * QUERIES, parts))
            y = jnp.moveaxis(y, 0, 1).reshape(padded.shape)[:, :L]
        return self.output(y.reshape(B * L, N * H)), cache

    def _seen(self, places: Int[Array, "Q"], length: int, batch: TextBatch) -> Bool[Array, "B Q L"]:
        """Which tokens of its text each query sees. One of padding may see none; what it makes of that is not used."""
        keys = jnp.arange(length)
        back = places[:, None] - keys
        seen = jnp.ones_like(back, bool) if batch.bidirectional else back >= 0
        if self.window is not None:
            seen &= jnp.abs(back) < self.window
        return seen & (keys < batch.counts[:, None])[:, None]
