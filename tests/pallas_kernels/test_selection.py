"""Selected tokens, and attention to them, against sorting and a dense softmax in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.paged_attention import attend_to_selected, select_tokens

HEADS, HEAD_DIM, PAGE = 6, 12, 8
INDEX_HEADS, INDEX_DIM = 20, 8  # so many heads that no two tokens score alike
WIDTH = 26  # pages of a table, which are not whole runs


@jax.jit
def attend(q, index_q, weights, pages, keys, tables, starts, counts, scales, key_scales):
    places = select_tokens(index_q, weights, keys, tables, starts, counts, most=20, scales=key_scales)
    return places, attend_to_selected(q, pages, places, starts, counts, scale=0.3, scales=scales)


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(
    ("queries", "starts", "counts"),
    [(1, [0, 18, 19, 20, 150, 0], [1, 1, 1, 1, 1, 0]), (16, [0, 4, 10, 188, 0], [16, 16, 11, 9, 0])],
)
def test_selected_tokens(queries, starts, counts, quantized):
    rng = np.random.default_rng(3)
    draw = partial(rng.standard_normal, dtype=np.float32)
    rows = len(starts)
    tables = rng.permutation(rows * WIDTH).reshape(rows, WIDTH).astype(np.int32)
    pages, keys = draw((rows * WIDTH, 1, PAGE, HEAD_DIM)), draw((rows * WIDTH, 1, PAGE, INDEX_DIM))
    scales = key_scales = None
    if quantized:
        pages, keys = pages.astype(jnp.float8_e4m3fn), keys.astype(jnp.float8_e4m3fn)
        scales, key_scales = (rng.uniform(0.5, 2, (rows * WIDTH, 1, PAGE)).astype(np.float32) for _ in range(2))
    q, index_q = draw((rows, queries, HEADS, HEAD_DIM)), draw((rows, queries, INDEX_HEADS, INDEX_DIM))
    weights = draw((rows, queries, INDEX_HEADS))
    places, got = attend(
        q, index_q, weights, pages, keys, tables, np.int32(starts), np.int32(counts), scales, key_scales
    )
    assert places.shape == (rows, queries, 20)
    assert np.isfinite(got).all()

    def of(row, pool, scale):
        sequence = pool[tables[row]].astype(np.float64).reshape(WIDTH * PAGE, -1)
        return sequence if scale is None else sequence * scale[tables[row]].reshape(-1, 1)

    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        stored, stored_keys = of(row, pages, scales), of(row, keys, key_scales)
        place = (tables[row][:, None] * PAGE + np.arange(PAGE)).reshape(-1)
        for i in range(count):
            seen = start + i + 1
            scores = weights[row, i] @ np.maximum(index_q[row, i].astype(np.float64) @ stored_keys[:seen].T, 0)
            best = np.argsort(-scores)[:20]
            assert places[row, i, : len(best)].tolist() == place[best].tolist()
            want = softmax(q[row, i] @ stored[best].T * 0.3) @ stored[best]
            np.testing.assert_allclose(got[row, i], want, atol=1e-5)
