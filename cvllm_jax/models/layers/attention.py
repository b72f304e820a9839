"""Grouped-query attention over the paged cache."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cvllm_jax.models.layers.linear import Linear
from cvllm_jax.models.layers.rope import rotate
from pallas_kernels.kv_write import write_kv
from pallas_kernels.paged_attention import paged_attention

__all__ = ["Attention", "BlockBatch", "LayerCache"]

#: Keys and values of one layer, each ``[P, K, S, H]``.
type LayerCache = tuple[Float[Array, "P K S H"], Float[Array, "P K S H"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class BlockBatch:
    """The tokens of one step: B blocks of Q query positions, each block of one sequence (T = B * Q).

    Decoding has Q = 1. Padding tokens have position 0 and are written to page 0, which no sequence owns.
    """

    positions: Int[Array, "T"]
    page: Int[Array, "T"]
    """Page that takes the token's keys and values, and the place in it."""
    offset: Int[Array, "T"]
    tables: Int[Array, "B W"]
    starts: Int[Array, "B"]
    """Position of each block's first token."""
    counts: Int[Array, "B"]
    """Tokens of each block that are no padding."""


class Attention(nnx.Module):
    """Self-attention with N query heads that share K heads of keys and values (GQA, arXiv 2305.13245).

    q, k and v are one matrix ``[(N + 2K) H, D]`` in this order.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_dim: int, *,
        dtype: jnp.dtype, bias: bool = False, output_bias: bool = False, window: int | None = None,
    ) -> None:  # fmt: skip
        self.heads, self.kv_heads, self.head_dim, self.window = heads, kv_heads, head_dim, window
        self.qkv = Linear(width, (heads + 2 * kv_heads) * head_dim, dtype=dtype, spec=P("tp", None), bias=bias)
        self.output = Linear(heads * head_dim, width, dtype=dtype, spec=P(None, "tp"), bias=output_bias)

    @jax.named_scope("attention")
    def __call__(
        self,
        x: Float[Array, "T D"],
        cache: LayerCache,
        batch: BlockBatch,
        rope: tuple[Float[Array, "T 1 H/2"], Float[Array, "T 1 H/2"]],
    ) -> tuple[Float[Array, "T D"], LayerCache]:
        N, K, H = self.heads, self.kv_heads, self.head_dim
        T, B = x.shape[0], batch.starts.shape[0]
        q, k, v = jnp.split(self.qkv(x).reshape(T, N + 2 * K, H), (N, N + K), axis=1)
        q, k = rotate(q, rope), rotate(k, rope)
        k_pages = write_kv(cache[0], k, batch.page, batch.offset)
        v_pages = write_kv(cache[1], v, batch.page, batch.offset)
        y = paged_attention(
            q.reshape(B, T // B, N, H), k_pages, v_pages, batch.tables, batch.starts, batch.counts,
            scale=H**-0.5, window=self.window,
            implementation="xla",  # the Hopper kernels have yet to run on a GPU
        )  # fmt: skip
        return self.output(y.reshape(T, N * H)), (k_pages, v_pages)
