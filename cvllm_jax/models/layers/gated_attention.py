"""Grouped-query attention whose heads have gates (arXiv 2505.06708)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from cvllm_jax.models.layers.attention import Attention, BlockBatch
from cvllm_jax.models.layers.linear import Linear
from cvllm_jax.models.layers.rope import RopeTables
from pallas_kernels.kv_write import KvPages

__all__ = ["GatedAttention"]


class GatedAttention(Attention):
    """:class:`Attention`; a sigmoid weighs what each head attends to, number by number, before the output.

    The rows of each query head are followed by those of its gate: ``qkv`` is ``[(2N + 2K) H, D]``.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_dim: int, *, dtype: jnp.dtype, bias: bool, **options: Any
    ) -> None:
        super().__init__(width, heads, kv_heads, head_dim, dtype=dtype, bias=bias, **options)
        self.qkv = Linear(width, 2 * (heads + kv_heads) * head_dim, dtype=dtype, spec=P("tp", None), bias=bias)

    @jax.named_scope("attention")
    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        T, N, H = x.shape[0], self.heads, self.head_dim
        queries, kv = jnp.split(self.qkv(x), (2 * N * H,), axis=1)
        q, gate = jnp.split(queries.reshape(T, N, 2 * H), 2, axis=2)
        heads = jnp.concatenate([q, kv.reshape(T, -1, H)], axis=1)
        y, cache = self.attend(self.normalized(heads), cache, batch, rope)
        y *= jax.nn.sigmoid(gate.astype(jnp.float32)).astype(y.dtype).reshape(T, N * H)
        return self.output(y), cache
