"""Time the Hopper kernels on an SM90 GPU, against the reference and against what copying reaches in the same run.

``python -m pallas_kernels.paged_attention.bench`` prints a line of JSON for each shape and refuses other devices.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.paged_attention.api import choose_implementation, paged_attention

__all__ = ["main"]

#: Elements of two bytes that the copy reads and writes: far more than the cache holds.
COPIED = 2**29

#: Sequences, queries of each, tokens of each, query heads, kv heads, head dim, page size; where there are several
#: queries, the blocks of one prompt.
Shape = tuple[int, int, int, int, int, int, int]

SHAPES: tuple[Shape, ...] = (
    (1, 1, 4096, 32, 8, 128, 16),
    (64, 1, 1024, 32, 8, 128, 16),
    (64, 1, 4096, 32, 8, 128, 16),
    (64, 1, 4096, 32, 8, 128, 64),
    (1, 1, 65536, 32, 8, 128, 16),
    (64, 128, 8192, 32, 8, 128, 16),
)


def main() -> None:
    """Measure every shape; exit with one sentence where the kernels do not run."""
    q, k, v, *_ = jax.eval_shape(partial(_inputs, *SHAPES[0]), jax.random.key(0))
    choice = choose_implementation(q, k, v)
    if choice.implementation != "hopper":
        sys.exit(f"nothing to measure: {choice.reason}")
    copied = jnp.zeros(COPIED, jnp.bfloat16)
    copy_bandwidth = 2 * copied.nbytes / _seconds(jax.jit(lambda x: x + 1), copied)
    _print(device=jax.devices()[0].device_kind, copy_bytes_per_second=copy_bandwidth)
    for shape in SHAPES:
        _measure(shape, copy_bandwidth)


def _measure(shape: Shape, copy_bandwidth: float) -> None:
    sequences, queries, length, heads, kv_heads, head_dim, page_size = shape
    arrays = jax.jit(partial(_inputs, *shape))(jax.random.key(time.time_ns() % 2**32))
    kernel, xla = (
        jax.jit(partial(paged_attention, scale=head_dim**-0.5, implementation=name)) for name in ("hopper", "xla")
    )
    error = jnp.abs(kernel(*arrays).astype(jnp.float32) - xla(*arrays).astype(jnp.float32)).max()
    seconds = _seconds(kernel, *arrays)
    figures = {"seconds": seconds, "reference_seconds": _seconds(xla, *arrays), "largest_difference": float(error)}
    if queries == 1:
        moved = sequences * length * kv_heads * head_dim * 2 * 2
        figures["share_of_copy_bandwidth"] = moved / seconds / copy_bandwidth
    else:
        # blocks of one sequence, one after another: half of the square is masked
        figures["flops_per_second"] = 4 * (sequences * queries) ** 2 / 2 * heads * head_dim / seconds
    _print(
        sequences=sequences, queries=queries, length=length, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        page_size=page_size, **figures,
    )  # fmt: skip


def _inputs(
    sequences: int, queries: int, length: int, heads: int, kv_heads: int, head_dim: int, page_size: int, key: jax.Array
) -> tuple[jax.Array, ...]:
    """Fresh arguments for ``paged_attention``: sequences of one length to decode, or the blocks of one prompt."""
    keys = jax.random.split(key, 4)
    pages = -(-length // page_size)
    rows = sequences if queries == 1 else 1
    pool = (rows * pages, kv_heads, page_size, head_dim)
    q = jax.random.normal(keys[0], (sequences, queries, heads, head_dim), jnp.bfloat16)
    k, v = (jax.random.normal(part, pool, jnp.bfloat16) for part in keys[1:3])
    tables = jax.random.permutation(keys[3], rows * pages).astype(jnp.int32).reshape(rows, pages)
    blocks = jnp.arange(sequences, dtype=jnp.int32)
    starts = jnp.full_like(blocks, length - 1) if queries == 1 else blocks * queries
    return q, k, v, jnp.broadcast_to(tables, (sequences, pages)), starts, jnp.full_like(blocks, queries)


def _seconds(function: Callable[..., jax.Array], *arrays: jax.Array, repeats: int = 20, rounds: int = 5) -> float:
    """Best mean time of a call over some rounds, after calls that compile and warm up."""
    for _ in range(3):
        function(*arrays).block_until_ready()
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(repeats):
            out = function(*arrays)
        out.block_until_ready()
        best = min(best, (time.perf_counter() - begin) / repeats)
    return best


def _print(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
