"""Paged attention against a dense softmax in float64, over pools full of NaN wherever no sequence has a token."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import core
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.paged_attention import paged_attention


def dense(q, keys, values, start, *, scale, window, soft_cap=None, sinks=None):
    """Attention of queries [Q N H] at positions from ``start`` over keys and values [K S H] of one sequence."""
    Q, N, _ = q.shape
    group = N // keys.shape[0]
    out = np.zeros(q.shape)
    for i in range(Q):
        low = 0 if window is None else max(0, start + i - window + 1)
        for n in range(N):
            k, v = keys[n // group, low : start + i + 1], values[n // group, low : start + i + 1]
            logits = k @ q[i, n] * scale
            if soft_cap is not None:
                logits = soft_cap * np.tanh(logits / soft_cap)
            sink = -np.inf if sinks is None else sinks[n]
            top = max(logits.max(), sink)
            weights = np.exp(logits - top)
            out[i, n] = weights @ v / (weights.sum() + np.exp(sink - top))
    return out


class Pool:
    """A pool that holds some sequences, each in pages of its own, in no order. Everything else is NaN."""

    def __init__(self, lengths, *, kv_heads, head_dim, page_size, width, seed=0, rest=np.nan):
        rng = np.random.default_rng(seed)
        self.keys = [rng.standard_normal((kv_heads, length, head_dim)) for length in lengths]
        self.values = [rng.standard_normal((kv_heads, length, head_dim)) for length in lengths]
        pages = sum(-(-length // page_size) for length in lengths) + 3
        free = rng.permutation(np.arange(1, pages)).tolist()
        self.tables = np.zeros((len(lengths), width), np.int32)
        self.k, self.v = (np.full((pages, kv_heads, page_size, head_dim), rest, np.float32) for _ in range(2))
        for row, length in enumerate(lengths):
            for index in range(-(-length // page_size)):
                page = self.tables[row, index] = free.pop()
                part = slice(index * page_size, min((index + 1) * page_size, length))
                self.k[page, :, : part.stop - part.start] = self.keys[row][:, part]
                self.v[page, :, : part.stop - part.start] = self.values[row][:, part]
            self.tables[row, -(-length // page_size) :] = rng.integers(0, pages)  # never attended to

    def quantize(self, dtype):
        """Rescale each token by a factor of its own and round it to 8 bits: the pages' arrays and their scales."""
        stored, scales = [], []
        for pages, contents in ((self.k, self.keys), (self.v, self.values)):
            top = np.abs(pages).max(-1)
            scale = (top / np.float32(100)).astype(np.float32)  # NaN where the pages are
            rounded = pages / scale[..., None]
            rounded = (np.nan_to_num(rounded.round(), nan=77) if dtype == jnp.int8 else rounded).astype(dtype)
            for row, content in enumerate(contents):
                page_size, length = pages.shape[2], content.shape[1]
                for index in range(-(-length // page_size)):
                    page, part = self.tables[row, index], slice(index * page_size, min((index + 1) * page_size, length))
                    used = slice(0, part.stop - part.start)
                    content[:, part] = rounded[page, :, used].astype(np.float32) * scale[page, :, used, None]
            stored.append(rounded)
            scales.append(scale)
        return *stored, *scales


@partial(jax.jit, static_argnames=("window", "scale", "soft_cap"))
def attend(q, k, v, tables, starts, counts, *, scale, window, soft_cap=None, **options):
    return paged_attention(q, k, v, tables, starts, counts, scale=scale, window=window, soft_cap=soft_cap, **options)


def check(
    pool, starts, counts, *, queries, heads, window=None, dtype=jnp.float32, tolerance=2e-5, stored=None, **options
):  # fmt: skip
    head_dim = pool.k.shape[3]
    q = np.random.default_rng(1).standard_normal((len(starts), queries, heads, head_dim)).astype(np.float32)
    for row, count in enumerate(counts):
        q[row, count:] = np.nan  # rows of padding
    scale = head_dim**-0.5
    if stored is not None:
        k, v, k_scales, v_scales = (jnp.asarray(array) for array in pool.quantize(np.dtype(stored)))
        arrays = {"k_scales": k_scales, "v_scales": v_scales}
    else:
        k, v, arrays = jnp.asarray(pool.k, dtype), jnp.asarray(pool.v, dtype), {}
    got = attend(
        jnp.asarray(q, dtype), k, v, jnp.asarray(pool.tables), jnp.asarray(starts, jnp.int32),
        jnp.asarray(counts, jnp.int32), scale=scale, window=window, **arrays, **options,
    )  # fmt: skip
    assert got.shape == q.shape and got.dtype == dtype
    got = np.asarray(got, np.float32)
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        want = dense(q[row, :count], pool.keys[row], pool.values[row], start, scale=scale, window=window, **options)
        np.testing.assert_allclose(got[row, :count], want, atol=tolerance, rtol=tolerance)


SHAPES = pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_size"),
    core([(6, 2, 16, 8), (8, 1, 12, 64), (4, 4, 8, 16), (4, 2, 8, 16)], 2),
)


@SHAPES
def test_decoding(heads, kv_heads, head_dim, page_size):
    """One query a sequence: lengths at the edges of pages and of runs, and rows that are not used."""
    lengths = [1, page_size - 1, page_size, page_size + 1, 127, 128, 129, 200, 0]
    pool = Pool(lengths, kv_heads=kv_heads, head_dim=head_dim, page_size=page_size, width=-(-256 // page_size))
    starts = [max(length - 1, 0) for length in lengths]
    for window in (None, 20):
        check(pool, starts, [min(n, 1) for n in lengths], queries=1, heads=heads, window=window)


@SHAPES
def test_prefill(heads, kv_heads, head_dim, page_size):
    """Blocks at the start, in the middle and at the end of sequences, full, partial and unused."""
    starts, counts = [0, 0, 0, 5, 64, 120, 0], [32, 1, 31, 32, 20, 16, 0]
    lengths = [start + count for start, count in zip(starts, counts, strict=True)]
    pool = Pool(lengths, kv_heads=kv_heads, head_dim=head_dim, page_size=page_size, width=-(-256 // page_size))
    for window in (None, 20):
        check(pool, starts, counts, queries=32, heads=heads, window=window)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_batch_of_blocks(data):
    """Shapes stay the same, so that one program serves all examples; lengths, window edges and contents vary."""
    decoding = data.draw(st.booleans())
    queries = 1 if decoding else 16
    rows = st.tuples(st.integers(0, 250), st.integers(0, queries))
    blocks = data.draw(st.lists(rows, min_size=4, max_size=4))
    starts = [start if count else 0 for start, count in blocks]
    counts = [count for _, count in blocks]
    lengths = [start + count for start, count in zip(starts, counts, strict=True)]
    seed = data.draw(st.integers(0, 99))
    pool = Pool(lengths, kv_heads=2, head_dim=8, page_size=16, width=17, seed=seed)
    pool.k, pool.v = (np.concatenate([pages, np.full((80 - len(pages), 2, 16, 8), np.nan, np.float32)])
                      for pages in (pool.k, pool.v))  # fmt: skip
    check(pool, starts, counts, queries=queries, heads=4, window=data.draw(st.sampled_from([None, 17])))


@pytest.mark.parametrize("queries", [1, 16])
def test_unused_blocks_give_finite_numbers(queries):
    pool = Pool([0, 20], kv_heads=2, head_dim=8, page_size=16, width=4, rest=0.0)
    out = attend(
        jnp.ones((2, queries, 4, 8)), pool.k, pool.v, pool.tables, jnp.array([0, 19]), jnp.array([0, 1]), scale=0.3,
        window=None,
    )  # fmt: skip
    assert np.isfinite(out).all()


@pytest.mark.parametrize("options", [{"soft_cap": 0.5}, {"sinks": np.array([-5.0, 0.0, 2.0, 40.0])}], ids=str)
def test_soft_cap_and_sinks(options):
    pool = Pool([130, 0, 20], kv_heads=2, head_dim=8, page_size=16, width=10)
    check(pool, [129, 0, 19], [1, 0, 1], queries=1, heads=4, **options)
    check(pool, [114, 0, 4], [16, 0, 16], queries=16, heads=4, window=30, **options)


def test_bfloat16():
    pool = Pool([100, 30], kv_heads=2, head_dim=16, page_size=16, width=8)
    check(pool, [99, 29], [1, 1], queries=1, heads=4, dtype=jnp.bfloat16, tolerance=0.04)
    check(pool, [90, 20], [10, 10], queries=16, heads=4, dtype=jnp.bfloat16, tolerance=0.04)


@pytest.mark.parametrize("stored", [jnp.int8, jnp.float8_e4m3fn])
@pytest.mark.parametrize(("dtype", "tolerance"), core([(jnp.float32, 2e-5), (jnp.bfloat16, 0.04)], 1))
def test_cache_in_8_bits(dtype, tolerance, stored):
    """A scale a token and kv head; NaN in unused places of pages and of scales."""
    options = {"heads": 4, "window": 30, "soft_cap": 5.0, "sinks": np.array([-5.0, 0.0, 2.0, 4.0], np.float32)}
    for queries in (1, 16):
        pool = Pool([130, 0, 20, 16], kv_heads=2, head_dim=16, page_size=16, width=10)
        starts, counts = [130 - queries, 0, 20 - queries, 16 - queries], [queries, 0, queries, queries]
        check(pool, starts, counts, queries=queries, dtype=dtype, tolerance=tolerance, stored=stored, heads=4)
        check(pool, starts, counts, queries=queries, dtype=dtype, tolerance=tolerance, stored=stored, **options)


@pytest.mark.parametrize(
    ("dtype", "scales", "message"),
    [
        (jnp.float8_e4m3fn, None, "k_pages of float8_e4m3fn need k_scales"),
        (jnp.int8, None, "k_pages of int8 need k_scales"),
        (jnp.float32, jnp.ones((9, 2, 16)), "k_scales go with k_pages of int8 or float8_e4m3fn, not of float32"),
        (jnp.float8_e4m3fn, jnp.ones((9, 2, 8)), r"must be float32 of shape \(9, 2, 16\), not float32 .* \(9, 2, 8\)"),
        (jnp.float8_e4m3fn, jnp.ones((9, 2, 16), jnp.bfloat16), "must be float32 of shape .*, not bfloat16"),
    ],
)
def test_cache_and_scales_must_go_together(dtype, scales, message):
    pages, ints = jnp.zeros((9, 2, 16, 8), dtype), jnp.ones(1, jnp.int32)
    with pytest.raises(ValueError, match=message):
        paged_attention(
            jnp.ones((1, 1, 4, 8)), pages, pages, ints[None], ints, ints, scale=1, k_scales=scales, v_scales=scales
        )


@pytest.mark.parametrize("size", [1e4, 1e-4])
def test_large_and_small_logits(size):
    """The running softmax neither overflows nor loses the early runs."""
    pool = Pool([200], kv_heads=1, head_dim=8, page_size=16, width=16)
    pool.k *= size
    pool.keys[0] *= size
    check(pool, [199], [1], queries=1, heads=2)
    check(pool, [190], [10], queries=16, heads=2)


def test_decoding_and_prefill_agree():
    """A block of queries gives what the same queries give one at a time."""
    pool = Pool([150], kv_heads=2, head_dim=8, page_size=16, width=10)
    q = np.random.default_rng(2).standard_normal((1, 16, 4, 8)).astype(np.float32)
    block = attend(q, pool.k, pool.v, pool.tables, jnp.array([134]), jnp.array([16]), scale=0.3, window=None)
    tables = np.repeat(pool.tables, 16, axis=0)
    single = attend(
        q[0][:, None], pool.k, pool.v, tables, jnp.arange(134, 150), jnp.ones(16, jnp.int32), scale=0.3, window=None
    )
    np.testing.assert_allclose(block[0], single[:, 0], atol=1e-5)


def test_heads_must_divide_into_groups():
    pool = Pool([4], kv_heads=2, head_dim=8, page_size=16, width=1)
    with pytest.raises(ValueError, match="3 query heads do not divide into groups for 2 kv heads"):
        paged_attention(jnp.ones((1, 1, 3, 8)), pool.k, pool.v, pool.tables, jnp.zeros(1), jnp.ones(1), scale=1)
