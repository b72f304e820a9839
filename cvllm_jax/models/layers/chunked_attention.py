"""Attention inside chunks: a token sees those before it in its own chunk of the sequence (Llama 4)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from cvllm_jax.errors import ConfigError
from cvllm_jax.models.layers.attention import BlockBatch
from pallas_kernels.kv_write import KvPages
from pallas_kernels.paged_attention import paged_attention

__all__ = ["chunked_attention"]


def chunked_attention(
    q: Float[Array, "B Q N H"], cache: KvPages, batch: BlockBatch, chunk: int, **options: Any
) -> Float[Array, "B Q N H"]:
    """:func:`pallas_kernels.paged_attention.paged_attention` in chunks of ``chunk`` positions.

    To the queries of one chunk, the sequence is the pages of that chunk. A block of queries may lie in several chunks:
    each has a pass of its own, in which its queries are the first of the block.

    Raises:
      ConfigError: a page would lie in two chunks.
    """
    Q = q.shape[1]
    page_size, pages = cache.k.shape[2], batch.tables.shape[1]
    if chunk % page_size:
        raise ConfigError(
            f"page_size is {page_size}, which does not divide the model's attention_chunk_size of {chunk}",
            param="page_size",
        )
    width = min(chunk // page_size, pages)
    rows = jnp.arange(Q)
    result = jnp.zeros_like(q)
    for after in range(1 + -(-(Q - 1) // chunk)):
        begin = (batch.starts // chunk + after) * chunk
        first = jnp.maximum(begin - batch.starts, 0)  # the row of the chunk's first query
        counts = jnp.clip(jnp.minimum(batch.counts, begin + chunk - batch.starts) - first, 0)
        places = begin[:, None] // page_size + jnp.arange(width)
        tables = jnp.take_along_axis(batch.tables, jnp.minimum(places, pages - 1), axis=1)
        moved = jnp.take_along_axis(q, jnp.minimum(rows + first[:, None], Q - 1)[:, :, None, None], axis=1)
        y = paged_attention(
            moved, cache.k, cache.v, tables, jnp.maximum(batch.starts - begin, 0), counts,
            k_scales=cache.k_scales, v_scales=cache.v_scales, implementation=batch.kernels.attention, **options,
        )  # fmt: skip
        back = rows - first[:, None]
        y = jnp.take_along_axis(y, jnp.clip(back, 0, Q - 1)[:, :, None, None], axis=1)
        result = jnp.where(((back >= 0) & (back < counts[:, None]))[:, :, None, None], y, result)
    return result
