"""Grouped-query attention over the paged cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Shaped

from cvllm_jax.models.layers.linear import Linear
from cvllm_jax.models.layers.rope import RopeTables
from pallas_kernels.kv_write import KvPages, rotate_and_write
from pallas_kernels.paged_attention import paged_attention

__all__ = ["Attention", "BlockBatch", "Kernels"]


class Kernels(NamedTuple):
    """Which implementation of each operation a step is compiled with."""

    attention: Literal["xla", "hopper", "native"] = "xla"
    kv_write: Literal["xla", "hopper", "native"] = "xla"
    experts: Literal["xla", "hopper"] = "xla"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class BlockBatch:
    """The T tokens of one step: those of B blocks of up to Q consecutive positions, each block of one sequence.

    Decoding has Q = 1. Where ``rows`` is None, T = B * Q and each block has room for Q tokens; else tokens lie without
    gaps, so that whatever computes token by token computes little padding, and only attention sees blocks. Padding
    tokens have position 0 and are written to page 0, which no sequence owns.
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
    slots: Int[Array, "B"] | None = None
    """Of each block's sequence, for layers that remember it in a place of its own; None where no layer does."""
    rows: Int[Array, "B Q"] | None = None
    """Which token each query of a block is; those past its count are any."""
    places: Int[Array, "T"] | None = None
    """Where each token is among the B * Q queries of all blocks; with ``rows`` only."""
    kernels: Kernels = field(default=Kernels(), metadata={"static": True})

    @property
    def real(self) -> Bool[Array, "T"]:
        """Which tokens are no padding."""
        T = len(self.positions)
        if self.rows is not None:
            return jnp.arange(T) < self.counts.sum()
        return (jnp.arange(T // len(self.counts)) < self.counts[:, None]).reshape(T)

    def blocks(self, x: Shaped[Array, "T *D"]) -> Shaped[Array, "B Q *D"]:
        """What tokens have, block by block."""
        if self.rows is None:
            return x.reshape(len(self.starts), -1, *x.shape[1:])
        return x.at[self.rows].get(mode="promise_in_bounds")

    def tokens(self, x: Shaped[Array, "B Q *D"]) -> Shaped[Array, "T *D"]:
        """What the queries of blocks have, token by token."""
        flat = x.reshape(-1, *x.shape[2:])
        return flat if self.places is None else flat.at[self.places].get(mode="promise_in_bounds")


class HeadNorm(Protocol):
    """A module that normalises the heads of queries or keys."""

    def __call__(self, x: Float[Array, "T N H"]) -> Float[Array, "T N H"]: ...


class Attention(nnx.Module):
    """Self-attention with N query heads that share K heads of keys and values (GQA, arXiv 2305.13245).

    q, k and v are one matrix ``[(N + 2K) H, D]`` in this order.

    Arguments:
      window: attend to this many latest positions only.
      scale: multiplies the scores; None is ``H ** -0.5``.
      soft_cap: bounds the scores by ``soft_cap * tanh(scores / soft_cap)``.
      q_norm, k_norm: applied to ``[T, N, H]`` and ``[T, K, H]`` before they are rotated.
      sinks: whether each query head has a logit that takes part in the softmax and has no value.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_dim: int, *,
        dtype: jnp.dtype, bias: bool = False, output_bias: bool = False, window: int | None = None,
        scale: float | None = None, soft_cap: float | None = None,
        q_norm: HeadNorm | None = None, k_norm: HeadNorm | None = None, sinks: bool = False,
    ) -> None:  # fmt: skip
        self.heads, self.kv_heads, self.head_dim, self.window = heads, kv_heads, head_dim, window
        self.scale = head_dim**-0.5 if scale is None else scale
        self.soft_cap = soft_cap
        self.qkv = Linear(width, (heads + 2 * kv_heads) * head_dim, dtype=dtype, spec=P("tp", None), bias=bias)
        self.q_norm, self.k_norm = q_norm, k_norm
        self.sinks = nnx.Param(jnp.zeros((heads,), jnp.float32), spec=P("tp")) if sinks else None
        self.output = Linear(heads * head_dim, width, dtype=dtype, spec=P(None, "tp"), bias=output_bias)

    @jax.named_scope("attention")
    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        y, cache = self.attend(self.heads_of(x), cache, batch, rope)
        return self.output(y), cache

    def attend(
        self, qkv: Float[Array, "T N+2*K H"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T N*H"], KvPages]:
        """What the query heads attend to."""
        q, cache = rotate_and_write(
            qkv, rope, cache, batch.page, batch.offset, implementation=batch.kernels.kv_write
        )
        y = paged_attention(
            batch.blocks(q), cache.k, cache.v, batch.tables, batch.starts, batch.counts,
            scale=self.scale, window=self.window, soft_cap=self.soft_cap,
            sinks=None if self.sinks is None else self.sinks[...],
            k_scales=cache.k_scales, v_scales=cache.v_scales, implementation=batch.kernels.attention,
        )  # fmt: skip
        return batch.tokens(y).reshape(len(qkv), -1), cache

    def heads_of(self, x: Float[Array, "T D"]) -> Float[Array, "T N+2*K H"]:
        """Queries, keys and values, to be rotated still."""
        return self.normalized(self.qkv(x).reshape(x.shape[0], self.heads + 2 * self.kv_heads, self.head_dim))

    def normalized(self, qkv: Float[Array, "T N+2*K H"]) -> Float[Array, "T N+2*K H"]:
        """The same with queries and keys normalised, where they are."""
        N, K = self.heads, self.kv_heads
        if self.q_norm is None or self.k_norm is None:
            return qkv
        q, k, v = jnp.split(qkv, (N, N + K), axis=1)
        return jnp.concatenate([self.q_norm(q), self.k_norm(k), v], axis=1)
