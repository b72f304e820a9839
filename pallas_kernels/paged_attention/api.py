"""The public operation: choose an implementation for the shapes and the hardware at hand."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from pallas_kernels.paged_attention import reference

__all__ = ["paged_attention"]


def paged_attention(
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
    """Causal attention of blocks of queries over the pages of their sequences.

    A block holds ``counts[b]`` queries of one sequence, at positions ``starts[b]``, ``starts[b] + 1``, ...;
    the keys and values of these positions are in the pages already. Decoding is the case Q = 1.

    Arguments:
      q: queries, rotated; rows past ``counts[b]`` are ignored.
      k_pages, v_pages: the cache of one layer.
      tables: page numbers of each block's sequence, in order; entries past its length are never attended to.
      starts: position of each block's first query.
      counts: valid queries of each block; 0 marks an unused block.
      scale: multiplies the logits, usually ``H ** -0.5``.
      window: attend to this many latest positions only, the query's own included.

    Returns:
      As ``q``; rows past ``counts[b]`` are finite and meaningless.
    """
    n_heads, kv_heads = q.shape[2], k_pages.shape[1]
    if n_heads % kv_heads:
        raise ValueError(f"{n_heads} query heads do not divide into groups for {kv_heads} kv heads")
    if q.shape[1] == 1:
        return reference.decode(q, k_pages, v_pages, tables, starts, counts, scale=scale, window=window)
    return reference.prefill(q, k_pages, v_pages, tables, starts, counts, scale=scale, window=window)
