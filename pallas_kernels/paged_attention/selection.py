"""Attention to the cached tokens that an indexer selects (DeepSeek-V3.2, arXiv 2512.02556), in XLA operations.

The cache has one key head: the latent vectors that all query heads share.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.paged_attention import reference

__all__ = ["attend_to_selected", "select_tokens"]


def select_tokens(
    q: Float[Array, "B Q M I"],
    weights: Float[Array, "B Q M"],
    keys: Float[Array, "P 1 S I"],
    tables: Int[Array, "B W"],
    starts: Int[Array, "B"],
    counts: Int[Array, "B"],
    *,
    most: int,
    scales: Float[Array, "P 1 S"] | None = None,
) -> Int[Array, "B Q L"]:
    """Where the tokens lie that each query attends to: those with the highest scores of all up to its own.

    A token's score is the sum over the indexer's heads of ``weights * relu(q . key)``.

    Arguments:
      q: the indexer's queries, rotated.
      weights: float32, of each head.
      keys: the indexer's key of each token, in pages.
      tables, starts, counts: as :func:`pallas_kernels.paged_attention.paged_attention` has them.
      most: tokens that a query attends to.
      scales: float32; what to multiply each token's key by. For int8 and float8_e4m3fn only.

    Returns:
      Places ``page * S + offset``, the best first. A query at position p has p + 1 at most; what stands behind them is
      meaningless. L is ``most``, or the number of tokens in a table if that is less.
    """
    select = partial(_select, keys=keys, most=most, scales=scales)
    if q.shape[1] == 1:
        return select(q, weights, tables, starts, counts)
    # the scores of all blocks at once would be as many numbers as tokens in the step, times the longest context
    return lax.map(
        lambda block: select(*(each[None] for each in block))[0], (q, weights, tables, starts, counts)
    )


def _select(
    q: jax.Array, weights: jax.Array, tables: jax.Array, starts: jax.Array, counts: jax.Array, *,
    keys: jax.Array, most: int, scales: jax.Array | None,
) -> jax.Array:  # fmt: skip
    B, Q = q.shape[:2]
    page_size, tokens = keys.shape[2], tables.shape[1] * keys.shape[2]
    pages, padded = reference.runs(tables, page_size, max(reference.PREFILL_RUN, reference.DECODE_TOKENS // (B * Q)))
    width = pages * page_size
    row = starts[:, None] + jnp.minimum(jnp.arange(Q, dtype=jnp.int32), counts[:, None] - 1)

    def body(i: jax.Array, scores: jax.Array) -> jax.Array:
        table = lax.dynamic_slice_in_dim(padded, i * pages, pages, axis=1)
        k = keys[table].reshape(B, width, -1).astype(q.dtype)
        dots = jnp.einsum(
            "bqmi,bsi->bqms", q, k, preferred_element_type=jnp.float32, precision=lax.Precision.HIGHEST
        )
        if scales is not None:
            dots *= scales[table].reshape(B, 1, 1, width)
        new = (jax.nn.relu(dots) * weights[..., None]).sum(2)
        seen = i * width + jnp.arange(width, dtype=jnp.int32) <= row[..., None]
        return lax.dynamic_update_slice_in_dim(scores, jnp.where(seen, new, -jnp.inf), i * width, axis=2)

    scores = jnp.full((B, Q, padded.shape[1] * page_size), -jnp.inf, jnp.float32)
    scores = lax.fori_loop(0, (jnp.max(row) + width) // width, body, scores)
    _, token = lax.top_k(scores, min(most, tokens))
    return jnp.take_along_axis(padded[:, None], token // page_size, axis=2) * page_size + token % page_size


def attend_to_selected(
    q: Float[Array, "B Q N H"],
    pages: Float[Array, "P 1 S H"],
    places: Int[Array, "B Q L"],
    starts: Int[Array, "B"],
    counts: Int[Array, "B"],
    *,
    scale: float,
    scales: Float[Array, "P 1 S"] | None = None,
) -> Float[Array, "B Q N H"]:
    """Attention of each query to tokens of its own, which are keys and values at once.

    Arguments:
      pages: the cache of one layer.
      places: what :func:`select_tokens` returns for these queries.
      scales: float32; what to multiply each token by. For int8 and float8_e4m3fn only.

    The other arguments, and what is returned, are those of :func:`pallas_kernels.paged_attention.paged_attention`.
    """
    Q, H = q.shape[1], q.shape[3]
    # to decoding these are sequences of selected tokens, in pages of one token each
    tokens = pages.reshape(-1, 1, 1, H)
    scales = None if scales is None else scales.reshape(-1, 1, 1)
    decode = partial(
        reference.decode, k_pages=tokens, v_pages=tokens, scale=scale, k_scales=scales, v_scales=scales
    )
    if Q == 1:
        return decode(q, tables=places[:, 0], starts=jnp.minimum(starts, places.shape[2] - 1), counts=counts)

    def block(args: tuple[jax.Array, ...]) -> jax.Array:
        q, places, start, count = args
        last = jnp.minimum(start + jnp.minimum(jnp.arange(Q, dtype=jnp.int32), count - 1), places.shape[1] - 1)
        return decode(q[:, None], tables=places, starts=last, counts=jnp.ones(Q, jnp.int32))[:, 0]

    return lax.map(block, (q, places, starts, counts))
