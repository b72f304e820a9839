"""Paged attention in XLA operations: what runs on CPUs and on GPUs without a kernel, and what kernels are held to.

Both forms walk the cache in runs of pages with a running softmax (Milakov and Gimelshein, arXiv 1805.02867), so the
number of runs follows the longest live sequence and not the size of the block table, and no program depends on it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

__all__ = ["DECODE_TOKENS", "PREFILL_RUN", "decode", "prefill", "runs"]

#: Cached tokens of a run: longer ones loop less often, shorter ones waste less on what lies past a sequence's end.
PREFILL_RUN, DECODE_RUN = 128, 64

#: Cached tokens that one iteration of decoding attends to, over all sequences: what stays in the CPU's cache.
DECODE_TOKENS = 512

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
    soft_cap: float | None = None,
    sinks: Float[Array, "N"] | None = None,
    k_scales: Float[Array, "P K S"] | None = None,
    v_scales: Float[Array, "P K S"] | None = None,
) -> Float[Array, "B 1 N H"]:
    """One query a sequence; see :func:`pallas_kernels.paged_attention.paged_attention`.

    The runs of all sequences are one list, of which an iteration takes some: its cost follows the tokens that there
    are, where an iteration over all sequences at once would cost as much for the shortest as for the longest.

    The logits are a product and a sum over H, not a dot: with so few rows a dot spends its time on transposing the
    keys that it gathered, while this form reads them in place.
    """
    B, _, N, H = q.shape
    K, S = k_pages.shape[1:3]
    G = N // K
    grouped = q.reshape(B, K, G, 1, H).astype(jnp.float32)
    pages, tables = runs(tables, S, DECODE_RUN)
    width = pages * S
    items = max(1, min(DECODE_TOKENS // width, B * tables.shape[1] // pages))
    tables = tables.reshape(B, -1, pages)
    first = jnp.zeros_like(starts) if window is None else jnp.maximum(starts - window + 1, 0) // width
    lengths = jnp.where(counts > 0, starts // width + 1 - first, 0)
    ends = jnp.cumsum(lengths)  # of each sequence in the list of runs
    first -= ends - lengths
    sequences = jnp.arange(B, dtype=jnp.int32)[:, None]
    if sinks is not None:
        sinks = sinks.reshape(1, K, G)

    def body(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, acc = carry  # [B K G], [B K G], [B K G H]
        item = i * items + jnp.arange(items, dtype=jnp.int32)
        row = jnp.minimum((item[:, None] >= ends).sum(-1, dtype=jnp.int32), B - 1)
        valid = item < ends[-1]
        run = jnp.where(valid, item + first[row], 0)
        table = jnp.where(valid[:, None], tables[row, run], 0)  # [I pages]
        start, key = starts[row][:, None], run[:, None] * width + jnp.arange(width, dtype=jnp.int32)
        seen = (key <= start) & valid[:, None]  # [I width]
        if window is not None:
            seen &= key > start - window
        seen = seen[:, None, None]

        def gather(pool: jax.Array) -> jax.Array:  # [I K width ...]
            return jnp.swapaxes(pool[table], 1, 2).reshape(items, K, width, *pool.shape[3:])

        k, v = gather(k_pages)[:, :, None].astype(jnp.float32), gather(v_pages).astype(jnp.float32)
        logits = (k * grouped[row]).sum(-1) * scale  # [I K G width]
        if k_scales is not None:
            logits *= gather(k_scales)[:, :, None]
        if soft_cap is not None:
            logits = jnp.tanh(logits / soft_cap) * soft_cap
        logits = jnp.where(seen, logits, MASKED)
        highest = logits.max(-1)
        weights = jnp.exp(logits - highest[..., None])
        sums = weights.sum(-1)
        if v_scales is not None:
            weights *= jnp.where(seen, gather(v_scales)[:, :, None], 0.0)
        # what an unused place of a page holds may be anything; 0 * NaN would be NaN
        values = jnp.einsum("ikgs,iksh->ikgh", weights, jnp.where(seen[:, 0, ..., None], v, 0.0))

        owned = row == sequences  # [B I]
        new_top = jnp.maximum(top, jnp.where(owned[..., None, None], highest, MASKED).max(1))
        shares = jnp.where(valid[:, None, None], jnp.exp(highest - new_top[row]), 0.0)

        def of_sequences(x: jax.Array) -> jax.Array:  # [I ...] to [B ...], as one product
            flat = (x * shares.reshape(shares.shape + (1,) * (x.ndim - 3))).reshape(items, -1)
            return (owned.astype(jnp.float32) @ flat).reshape(B, *x.shape[1:])

        shrink = jnp.exp(top - new_top)
        return new_top, total * shrink + of_sequences(sums), acc * shrink[..., None] + of_sequences(values)

    _, total, acc = lax.fori_loop(0, -(-ends[-1] // items), body, _nothing_seen((B, K, G, H), sinks))
    return (acc / jnp.maximum(total, 1e-30)[..., None]).astype(q.dtype).reshape(B, 1, N, H)


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
    soft_cap: float | None = None,
    sinks: Float[Array, "N"] | None = None,
    k_scales: Float[Array, "P K S"] | None = None,
    v_scales: Float[Array, "P K S"] | None = None,
) -> Float[Array, "B Q N H"]:
    """Blocks of queries, one after another; see :func:`pallas_kernels.paged_attention.paged_attention`."""
    B, Q, N, H = q.shape
    K, G = k_pages.shape[1], N // k_pages.shape[1]
    grouped = q.reshape(B, Q, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * Q, H)
    pages, tables = runs(tables, k_pages.shape[2], PREFILL_RUN)
    if sinks is not None:
        sinks = jnp.repeat(sinks.reshape(1, K, G), Q, axis=2)
    width = pages * k_pages.shape[2]

    def block(args: tuple[jax.Array, ...]) -> jax.Array:
        q_block, table, start, count = args

        def gather(page: jax.Array, pool: jax.Array) -> jax.Array:  # [K width H]
            return pool[page[0]].transpose(1, 0, 2, 3).reshape(K, width, H)

        def scales(page: jax.Array, pool: jax.Array) -> jax.Array:  # [K width]
            return pool[page[0]].transpose(1, 0, 2).reshape(K, width)

        def logits(page: jax.Array) -> jax.Array:  # [1 K GQ width]
            k = gather(page, k_pages)
            if k_scales is not None:
                k = k.astype(q.dtype)
            dots = jnp.einsum("krh,ksh->krs", q_block, k, preferred_element_type=jnp.float32)[None] * scale
            return dots if k_scales is None else dots * scales(page, k_scales)[:, None]

        def weigh(page: jax.Array, weights: jax.Array, seen: jax.Array) -> jax.Array:
            v, used = gather(page, v_pages), seen[0].any(-2)  # used: [1 width]
            v = jnp.where(used[..., None], v, 0)
            if v_scales is not None:
                v = v.astype(q.dtype)
                weights *= jnp.where(used, scales(page, v_scales), 0.0)[:, None]
            return jnp.einsum("krs,ksh->krh", weights[0].astype(v.dtype), v, preferred_element_type=jnp.float32)[None]

        # padding rows see what the last query sees: past that, a page holds anything, and 0 * NaN would be NaN
        row = start + jnp.minimum(jnp.arange(Q, dtype=jnp.int32), count - 1)
        rows = jnp.tile(row, G)[None, None, :, None]
        return _walk(
            table[None], pages, width, rows, start + count, logits, weigh, (1, K, G * Q, H), window, soft_cap, sinks
        )[0]

    out = lax.map(block, (grouped, tables, starts, counts)).astype(q.dtype)
    return out.reshape(B, K, G, Q, H).transpose(0, 3, 1, 2, 4).reshape(B, Q, N, H)


def runs(tables: Int[Array, "B W"], page_size: int, tokens: int) -> tuple[int, Int[Array, "B W"]]:
    """Pages in a run of so many tokens, and the tables padded to whole runs."""
    pages = min(max(1, tokens // page_size), tables.shape[1])
    return pages, jnp.pad(tables, ((0, 0), (0, -tables.shape[1] % pages)))


def _walk(
    tables: Int[Array, "B W"],
    pages: int,
    width: int,
    rows: Int[Array, "B 1 #R 1"],
    end: Int[Array, ""],
    logits_of: Callable[[Int[Array, "B W"]], Float[Array, "B K R S"]],
    weigh: Callable[[Int[Array, "B W"], Float[Array, "B K R S"], Bool[Array, "B 1 #R S"]], Float[Array, "B K R H"]],
    shape: tuple[int, int, int, int],
    window: int | None,
    soft_cap: float | None,
    sinks: Float[Array, "1 K R"] | None,
) -> Float[Array, "B K R H"]:
    """Softmax over positions up to each row's own, in runs of ``width`` that cover the positions below ``end``."""
    begin = jnp.int32(0) if window is None else jnp.maximum(jnp.min(rows) - window + 1, 0) // width

    def body(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, acc = carry
        table = lax.dynamic_slice_in_dim(tables, i * pages, pages, axis=1)
        key = i * width + jnp.arange(width, dtype=jnp.int32)
        seen = key <= rows
        if window is not None:
            seen &= key > rows - window
        logits = logits_of(table)
        if soft_cap is not None:
            logits = jnp.tanh(logits / soft_cap) * soft_cap
        logits = jnp.where(seen, logits, MASKED)
        new_top = jnp.maximum(top, logits.max(-1))
        weights = jnp.exp(logits - new_top[..., None])
        shrink = jnp.exp(top - new_top)
        return new_top, total * shrink + weights.sum(-1), acc * shrink[..., None] + weigh(table, weights, seen)

    _, total, acc = lax.fori_loop(begin, (end + width - 1) // width, body, _nothing_seen(shape, sinks))
    return acc / jnp.maximum(total, 1e-30)[..., None]


def _nothing_seen(
    shape: tuple[int, int, int, int], sinks: Float[Array, "1 K R"] | None
) -> tuple[Float[Array, "B K R"], Float[Array, "B K R"], Float[Array, "B K R H"]]:
    """Highest logit, sum of weights and weighted values ``[B K R H]`` of a softmax that has seen no position."""
    if sinks is None:
        top, total = jnp.full(shape[:3], MASKED, jnp.float32), jnp.zeros(shape[:3], jnp.float32)
    else:  # a sink is a position that every row sees, of value 0
        top, total = jnp.broadcast_to(sinks.astype(jnp.float32), shape[:3]), jnp.ones(shape[:3], jnp.float32)
    return top, total, jnp.zeros(shape, jnp.float32)
