"""Attention of others that can be called from JAX, on the shapes of our own cases."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.benchmarking import Case

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
SCALE = HEAD_DIM**-0.5

#: Sequences and tokens of each.
DECODES = ((64, 4096), (64, 1024), (1, 65536), (1, 4096))
PREFILL = 8192


def cases(*, tiny: bool = False) -> Iterator[Case]:
    """cuDNN on contiguous keys and values, which is easier than on pages; and JAX's own Triton kernel on pages."""
    for sequences, length in ((2, 64),) if tiny else DECODES:
        yield _contiguous(sequences, 1, length, tiny=tiny)
    yield _contiguous(1, 64 if tiny else PREFILL, 64 if tiny else PREFILL, tiny=tiny)
    for sequences, length in () if tiny else DECODES:  # Triton has no interpreter on a CPU that does this
        yield _triton(sequences, length, 16)


def _contiguous(sequences: int, queries: int, length: int, *, tiny: bool) -> Case:
    def inputs(key: jax.Array) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, 3)
        kv = (sequences, length, KV_HEADS, HEAD_DIM)
        q = jax.random.normal(keys[0], (sequences, queries, HEADS, HEAD_DIM), jnp.bfloat16)
        k, v = (jax.random.normal(part, kv, jnp.bfloat16) for part in keys[1:])
        return q, k, v

    def attend(q: Any, k: Any, v: Any, implementation: Any) -> Any:
        return jax.nn.dot_product_attention(
            q, k, v, scale=SCALE, is_causal=queries > 1, implementation=implementation
        )

    causal = queries > 1
    return Case(
        name=f"cuDNN prefill {queries}" if causal else f"cuDNN decode {sequences}x{length}",
        inputs=inputs,
        kernel=partial(attend, implementation="xla" if tiny else "cudnn"),
        reference=partial(attend, implementation="xla"),
        bytes_moved=2 * sequences * length * KV_HEADS * HEAD_DIM * 2,
        flops=2 * queries * length * HEADS * HEAD_DIM if causal else 0,
        reference_is_timed=False,
    )


def _triton(sequences: int, length: int, page_size: int) -> Case:
    pages = length // page_size

    def inputs(key: jax.Array) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, 4)
        pool = (KV_HEADS, sequences * pages, page_size, HEAD_DIM)
        q = jax.random.normal(keys[0], (sequences, HEADS, HEAD_DIM), jnp.bfloat16)
        k, v = (jax.random.normal(part, pool, jnp.bfloat16) for part in keys[1:3])
        tables = jax.random.permutation(keys[3], sequences * pages).astype(jnp.int32).reshape(sequences, pages)
        return q, k, v, tables, jnp.full((sequences,), length, jnp.int32)

    def kernel(q: Any, k: Any, v: Any, tables: Any, lengths: Any) -> Any:
        from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention

        # a part must hold whole blocks of 8 pages
        return paged_attention(q * jnp.bfloat16(SCALE), k, v, tables, lengths, k_splits=min(16, pages // 8))

    def reference(q: Any, k: Any, v: Any, tables: Any, lengths: Any) -> Any:
        k, v = (pool[:, tables].reshape(KV_HEADS, sequences, length, HEAD_DIM) for pool in (k, v))
        k, v = (part.transpose(1, 2, 0, 3) for part in (k, v))
        return jax.nn.dot_product_attention(q[:, None], k, v, scale=SCALE)[:, 0]

    return Case(
        name=f"jax Triton decode {sequences}x{length}",
        inputs=inputs,
        kernel=kernel,
        reference=reference,
        bytes_moved=2 * sequences * length * KV_HEADS * HEAD_DIM * 2,
        tolerance=2e-2,  # its partial results are kept in bf16
        reference_is_timed=False,
    )
