"""Cases for ``python -m bench.gpu``: is the kernel ahead of XLA's rotation and scatter, and how far from copying?"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.benchmarking import Case
from pallas_kernels.kv_write.api import Implementation, rotate_and_write
from pallas_kernels.kv_write.pages import KvPages

__all__ = ["cases"]

#: Tokens, query heads, kv heads, head dim, rotary dim, page size, bytes of a stored element.
Shape = tuple[int, int, int, int, int, int, int]

SHAPES: tuple[Shape, ...] = (
    (64, 32, 8, 128, 128, 16, 2),
    (8192, 32, 8, 128, 128, 16, 2),
    (1, 32, 8, 128, 128, 16, 2),
    (64, 32, 8, 128, 128, 16, 1),
    (8192, 32, 8, 128, 128, 16, 1),
    (256, 32, 8, 128, 128, 64, 2),
    (64, 32, 8, 64, 64, 16, 2),
    (64, 8, 4, 256, 256, 16, 2),
    (64, 24, 8, 128, 96, 16, 2),
)

TINY: tuple[Shape, ...] = (
    (3, 4, 2, 64, 64, 16, 2),
    (2, 3, 1, 128, 96, 16, 1),
)


def cases(*, tiny: bool = False) -> Iterator[Case]:
    """The shapes of a decode step and of a prefill chunk, in pages of both types."""
    for shape in TINY if tiny else SHAPES:
        tokens, heads, kv_heads, head_dim, rotary_dim, page_size, stored_bytes = shape
        scales = 4 if stored_bytes == 1 else 0
        per_token = 2 * (2 * heads + 2 * kv_heads) * head_dim + 2 * kv_heads * (stored_bytes * head_dim + scales)
        yield Case(
            name=f"{tokens} tokens {heads}/{kv_heads} heads of {head_dim}"
            f"{f' rotary {rotary_dim}' if rotary_dim < head_dim else ''}"
            f" {'bf16' if stored_bytes == 2 else 'fp8'} page {page_size}",
            inputs=jax.jit(partial(_inputs, *shape)),
            kernel=partial(_run, implementation="hopper"),
            reference=partial(_run, implementation="xla"),
            bytes_moved=tokens * (per_token + 4 * rotary_dim + 8),
            tolerance=1e-2 if stored_bytes == 2 else 5e-2,  # rounding to float8_e4m3fn costs 0.03
            donated=5 if stored_bytes == 1 else 3,
            checked=_checked,
            spot_check=_error,
        )


def _run(*arrays: jax.Array, implementation: Implementation) -> tuple[jax.Array, ...]:
    """Queries and pages, in place of those given."""
    *donated, qkv, cos, sin, page, offset = arrays
    q, pages = rotate_and_write(qkv, (cos, sin), KvPages(*donated[1:]), page, offset, implementation=implementation)
    return q, *(array for array in pages if array is not None)


def _checked(output: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Queries, keys and values as numbers."""
    q, k, v, *scales = (array.astype(jnp.float32) for array in output)
    return (q, k, v) if not scales else (q, k * scales[0][..., None], v * scales[1][..., None])


def _error(output: tuple[Any, ...], *arrays: Any) -> float:
    """Norm of the error of all queries, keys and values, in float64 and over the norm of what is right."""
    *_, qkv, cos, sin, page, offset = (np.asarray(array, np.float64) for array in arrays)
    q, k, v, *scales = (np.asarray(array, np.float64) for array in output)
    page, offset, half = page.astype(int), offset.astype(int), cos.shape[-1]
    if scales:
        k, v = k * scales[0][..., None], v * scales[1][..., None]
    left, right, rest = np.split(qkv, (half, 2 * half), axis=-1)
    heads = np.concatenate([left * cos - right * sin, right * cos + left * sin, rest], axis=-1)
    K = k.shape[1]
    heads[:, -K:] = qkv[:, -K:]
    ours = np.concatenate([q, k[page, :, offset], v[page, :, offset]], axis=1)
    return float(np.linalg.norm(ours - heads) / np.linalg.norm(heads))


def _inputs(
    tokens: int, heads: int, kv_heads: int, head_dim: int, rotary_dim: int, page_size: int, stored_bytes: int,
    key: jax.Array,
) -> tuple[Any, ...]:  # fmt: skip
    """Pages of zeros, so that what is compared is what was written, in a random order."""
    keys = jax.random.split(key, 3)
    pages = -(-tokens // page_size) + 1
    qkv = jax.random.normal(keys[0], (tokens, heads + 2 * kv_heads, head_dim), jnp.bfloat16)
    angle = jax.random.uniform(keys[1], (tokens, 1, rotary_dim // 2), jnp.float32, 0, 1000)
    place = jax.random.permutation(keys[2], pages * page_size)[:tokens].astype(jnp.int32)
    stored = (pages, kv_heads, page_size, head_dim)
    cache = [jnp.zeros(stored, jnp.bfloat16 if stored_bytes == 2 else jnp.float8_e4m3fn) for _ in range(2)]
    if stored_bytes == 1:
        cache += [jnp.zeros(stored[:3], jnp.float32) for _ in range(2)]
    q = jnp.full((tokens, heads, head_dim), jnp.nan, jnp.bfloat16)
    return q, *cache, qkv, jnp.cos(angle), jnp.sin(angle), place // page_size, place % page_size
