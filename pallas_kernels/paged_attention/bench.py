"""Cases for ``python -m bench.gpu --only kernels``: the head shape of an 8B Llama, decoding and prefill."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from pallas_kernels.benchmarking import Case
from pallas_kernels.paged_attention.api import paged_attention
from pallas_kernels.paged_attention.config import HopperConfig

__all__ = ["cases"]

QUERY_BLOCK = 128


class Heads(NamedTuple):
    query: int
    kv: int
    dim: int


class Layout(NamedTuple):
    """How keys and values lie in the cache."""

    page_size: int
    dtype: Any
    heads: Heads

    @property
    def token_bytes(self) -> int:
        """A token's key and value, with their scales where the cache is quantised."""
        size = jnp.dtype(self.dtype).itemsize
        return 2 * self.heads.kv * (self.heads.dim * size + (4 if size == 1 else 0))

    def __str__(self) -> str:
        return f"page {self.page_size} {'fp8' if jnp.dtype(self.dtype).itemsize == 1 else 'bf16'}"


HEADS, TINY_HEADS = Heads(32, 8, 128), Heads(4, 2, 64)

#: As many sequences with 64 to 16,384 tokens, evenly spaced in ratio: what a busy server decodes.
MIXED = tuple(int(64 * 256 ** (i / 63)) for i in range(64))


def cases(*, tiny: bool = False) -> Iterator[Case]:
    """Decoding of equal and mixed lengths, then prompts alone and behind cached tokens."""
    if tiny:
        tiny_page = Layout(16, jnp.bfloat16, TINY_HEADS)
        yield _decode("2x64", (64, 64), tiny_page)
        yield _decode("mixed", (1, 200, 65), Layout(64, jnp.float8_e4m3fn, TINY_HEADS))
        yield _prefill("128 after 128", 128, 128, tiny_page)
        return
    for page_size, dtype in ((16, jnp.bfloat16), (16, jnp.float8_e4m3fn), (64, jnp.bfloat16), (64, jnp.float8_e4m3fn)):
        layout = Layout(page_size, dtype, HEADS)
        for sequences, length in ((64, 4096), (64, 1024), (1, 65536), (1, 4096)):
            yield _decode(f"{sequences}x{length}", (length,) * sequences, layout)
        yield _decode("64 of 64 to 16384", MIXED, layout)
        yield _prefill("8192", 0, 8192, layout)
        yield _prefill("2048 after 6144", 6144, 2048, layout)


def _decode(name: str, lengths: tuple[int, ...], layout: Layout) -> Case:
    return _case(
        f"decode {name}, {layout}", np.array(lengths) - 1, np.arange(len(lengths)), 1, layout,
        bytes_moved=sum(lengths) * layout.token_bytes, flops=0,
    )  # fmt: skip


def _prefill(name: str, cached: int, new: int, layout: Layout) -> Case:
    """``new`` tokens of one prompt behind ``cached`` ones."""
    heads = layout.heads
    starts = cached + np.arange(0, new, QUERY_BLOCK)
    attended = new * cached + new * (new + 1) // 2
    return _case(
        f"prefill {name}, {layout}", starts, np.zeros_like(starts), QUERY_BLOCK, layout,
        bytes_moved=2 * 2 * new * heads.query * heads.dim + (cached + new) * layout.token_bytes,
        flops=4 * attended * heads.query * heads.dim,
    )  # fmt: skip


def _case(
    name: str, starts: np.ndarray, owners: np.ndarray, queries: int, layout: Layout, *,
    bytes_moved: int, flops: int,
) -> Case:  # fmt: skip
    """Blocks of ``queries`` queries at ``starts``; block b is of sequence ``owners[b]``."""
    page_size, dtype, heads = layout
    ends = np.zeros(owners.max() + 1, np.int32)
    np.maximum.at(ends, owners, starts + queries)
    counts = -(-ends // page_size)
    total, width = int(counts.sum()), int(counts.max())

    def inputs(key: jax.Array) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, 4)
        pool = (total + 1, heads.kv, page_size, heads.dim)
        q = jax.random.normal(keys[0], (len(starts), queries, heads.query, heads.dim), jnp.bfloat16)
        k, v = (jax.random.normal(part, pool, jnp.bfloat16).at[0].set(jnp.nan).astype(dtype) for part in keys[1:3])
        # page 0 is nobody's; a sequence's pages lie anywhere
        numbers = 1 + jax.random.permutation(keys[3], total).astype(jnp.int32)
        table = np.zeros((len(ends), width), np.int32)
        used = np.arange(width) < counts[:, None]
        table[used] = np.arange(total)
        tables = jnp.where(used, numbers[table], 0)[owners]
        arrays = (q, k, v, tables, jnp.asarray(starts, jnp.int32), jnp.full(len(starts), queries, jnp.int32))
        if jnp.dtype(dtype).itemsize > 1:
            return arrays
        scales = (
            jax.random.uniform(part, pool[:3], jnp.float32, 0.5, 2).at[0].set(jnp.nan)
            for part in jax.random.split(keys[0])
        )
        return *arrays, *scales

    def attend(
        q: Any, k: Any, v: Any, tables: Any, starts: Any, counts: Any, *scales: Any, **options: Any
    ) -> jax.Array:
        options |= dict(zip(("k_scales", "v_scales"), scales, strict=False))
        return paged_attention(q, k, v, tables, starts, counts, scale=heads.dim**-0.5, **options)

    # the interpreter takes its time for thread blocks without work
    config = HopperConfig(thread_blocks=2) if heads is TINY_HEADS else None
    return Case(
        name=name,
        inputs=inputs,
        kernel=partial(attend, implementation="hopper", config=config),
        reference=partial(attend, implementation="xla"),
        bytes_moved=bytes_moved,
        flops=flops,
        spot_check=_error_of_some_rows,
    )


def _error_of_some_rows(
    output: Float[np.ndarray, "B Q N H"],
    q: Float[np.ndarray, "B Q N H"],
    k_pages: Float[np.ndarray, "P K S H"],
    v_pages: Float[np.ndarray, "P K S H"],
    tables: Int[np.ndarray, "B W"],
    starts: Int[np.ndarray, "B"],
    counts: Int[np.ndarray, "B"],
    *scales: Float[np.ndarray, "P K S"],
) -> float:
    """Relative error of a few queries against softmax attention in float64."""
    rng = np.random.default_rng(0)
    group = q.shape[2] // k_pages.shape[1]
    wrong = right = 0.0
    for _ in range(16):
        b, i, n = (int(rng.integers(size)) for size in q.shape[:3])
        length = int(starts[b]) + i + 1
        pages = tables[b, : -(-length // k_pages.shape[2])]
        k, v = (_float64(pool[pages, n // group]).reshape(-1, q.shape[3])[:length] for pool in (k_pages, v_pages))
        if scales:
            k, v = (
                part * _float64(scale[pages, n // group]).reshape(-1, 1)[:length] for part, scale in zip((k, v), scales)
            )
        logits = k @ _float64(q[b, i, n]) * q.shape[3] ** -0.5
        weights = np.exp(logits - logits.max())
        expected = weights @ v / weights.sum()
        wrong += float(np.square(_float64(output[b, i, n]) - expected).sum())
        right += float(np.square(expected).sum())
    return float(np.sqrt(wrong / right))


def _float64(array: Any) -> np.ndarray:
    return np.asarray(array, np.float32).astype(np.float64)
