"""Paged attention in XLA operations: what runs on CPUs and on GPUs without a kernel, and what kernels are held to.

Both forms walk the cache in runs of pages with a running softmax (Milakov and Gimelshein, arXiv 1805.02867), so the
number of runs follows the longest live sequence and not the size of the block table, and no program depends on it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

__all__ = ["decode", "prefill"]

#: Cached tokens that one iteration attends to. Decoding gathers for all sequences at once, where few large
#: gathers beat many small ones; prefill skips what is not causal, so its runs are as long as its query blocks.
DECODE_RUN = 256
PREFILL_RUN = 128

#: Logit of a masked position: finite, so that a fully masked row gives numbers and no NaN.
MASKED = -1e30


def decode(
    q: Float[Array, "B 1 N H"],
    k_pages: Float[Array, "P K S H"],
    v_pages: Float[Array, "P K S H"],
    tables: Int[Array, "B W"],
    starts: Int[Array, "B"],
    counts: Int[Array, "B"],
    *,
    scale: float,
    window: int | None = None,
) -> Float[Array, "B 1 N H"]:
    """One query a sequence; see :func:`pallas_kernels.paged_attention.paged_attention`."""
    B, _, N, H = q.shape
    out = _attend(
        q.reshape(B, k_pages.shape[1], -1, H), k_pages, v_pages, tables, starts[:, None], counts,
        scale=scale, window=window, run=DECODE_RUN,
    )  # fmt: skip
    return out.reshape(B, 1, N, H)


def prefill(
    q: Float[Array, "B Q N H"],
    k_pages: Float[Array, "P K S H"],
    v_pages: Float[Array, "P K S H"],
    tables: Int[Array, "B W"],
    starts: Int[Array, "B"],
    counts: Int[Array, "B"],
    *,
    scale: float,
    window: int | None = None,
) -> Float[Array, "B Q N H"]:
    """Blocks of queries, one after another; see :func:`pallas_kernels.paged_attention.paged_attention`."""
    B, Q, N, H = q.shape
    K = k_pages.shape[1]
    grouped = q.reshape(B, Q, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, N // K * Q, H)  # [B K GQ H]

    def block(args: tuple[jax.Array, ...]) -> jax.Array:
        q_block, table, start, count = args
        positions = jnp.tile(start + jnp.arange(Q, dtype=jnp.int32), N // K)
        return _attend(
            q_block[None], k_pages, v_pages, table[None], positions[None], count[None],
            scale=scale, window=window, run=PREFILL_RUN, last=start + count,
        )[0]  # fmt: skip

    out = lax.map(block, (grouped, tables, starts, counts))
    return out.reshape(B, K, N // K, Q, H).transpose(0, 3, 1, 2, 4).reshape(B, Q, N, H)


def _attend(
    q: Float[Array, "B K R H"],
    k_pages: Float[Array, "P K S H"],
    v_pages: Float[Array, "P K S H"],
    tables: Int[Array, "B W"],
    positions: Int[Array, "B #R"],
    counts: Int[Array, "B"],
    *,
    scale: float,
    window: int | None,
    run: int,
    last: Int[Array, ""] | None = None,
) -> Float[Array, "B K R H"]:
    """R rows of queries a sequence, each at its position, over the sequence's pages."""
    B, K, R, H = q.shape
    S, W = k_pages.shape[2], tables.shape[1]
    pages = min(max(1, run // S), W)
    width = pages * S
    tables = jnp.pad(tables, ((0, 0), (0, -W % pages)))  # so that the last run's slice is not shifted
    end = last if last is not None else jnp.max(jnp.where(counts > 0, positions[:, 0] + 1, 0))
    begin = jnp.int32(0) if window is None else jnp.maximum(jnp.min(positions) - window + 1, 0) // width
    rows = positions[:, None, :, None]  # one position for all rows when decoding

    def body(i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        top, total, acc = carry
        page = lax.dynamic_slice_in_dim(tables, i * pages, pages, axis=1)
        # [B pages K S H] as gathered: heads stay outside the tokens, so no transpose follows the dots
        k, v = k_pages[page], v_pages[page]
        logits = jnp.einsum("bkrh,bpksh->bkrps", q, k, preferred_element_type=jnp.float32).reshape(B, K, R, width)
        key = i * width + jnp.arange(width, dtype=jnp.int32)
        seen = key <= rows
        if window is not None:
            seen &= key > rows - window
        logits = jnp.where(seen, logits * scale, MASKED)
        new_top = jnp.maximum(top, logits.max(-1))
        weights = jnp.exp(logits - new_top[..., None])
        shrink = jnp.exp(top - new_top)
        update = jnp.einsum(
            "bkrps,bpksh->bkrh", weights.astype(v.dtype).reshape(B, K, R, pages, S), v,
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        return new_top, total * shrink + weights.sum(-1), acc * shrink[..., None] + update

    init = (
        jnp.full((B, K, R), MASKED, jnp.float32),
        jnp.zeros((B, K, R), jnp.float32),
        jnp.zeros((B, K, R, H), jnp.float32),
    )
    _, total, acc = lax.fori_loop(begin, (end + width - 1) // width, body, init)
    return (acc / jnp.maximum(total, 1e-30)[..., None]).astype(q.dtype)
