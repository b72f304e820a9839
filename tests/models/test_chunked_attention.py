"""Attention in chunks against a mask over everything."""

import jax.numpy as jnp
import numpy as np
import pytest

from cvllm_jax.errors import ConfigError
from cvllm_jax.models.layers import BlockBatch
from cvllm_jax.models.layers.chunked_attention import chunked_attention
from pallas_kernels.kv_write import KvPages

PAGES, PAGE_SIZE, HEADS, KV_HEADS, SIZE = 6, 4, 4, 2, 8


@pytest.mark.parametrize("queries", [1, 17])
@pytest.mark.parametrize("chunk", [4, 8])
def test_queries_see_what_is_before_them_in_their_chunk(queries, chunk):
    rng = np.random.default_rng(queries * chunk)
    starts, counts = np.array([0, 3, 7, 5], np.int32), np.array([queries, queries, min(queries, 2), 0], np.int32)
    tables = np.stack([rng.permutation(PAGES) for _ in starts]).astype(np.int32)
    q = rng.normal(size=(len(starts), queries, HEADS, SIZE)).astype(np.float32)
    k, v = rng.normal(size=(2, PAGES, KV_HEADS, PAGE_SIZE, SIZE)).astype(np.float32)
    nothing = jnp.zeros(q.shape[0] * queries, jnp.int32)
    batch = BlockBatch(
        positions=nothing, page=nothing, offset=nothing,
        tables=jnp.asarray(tables), starts=jnp.asarray(starts), counts=jnp.asarray(counts),
    )  # fmt: skip
    got = chunked_attention(jnp.asarray(q), KvPages(jnp.asarray(k), jnp.asarray(v)), batch, chunk, scale=0.5)
    assert np.isfinite(got).all()
    for block, (start, count) in enumerate(zip(starts, counts, strict=True)):
        keys, values = (
            np.repeat(np.concatenate(x[tables[block]], axis=1), HEADS // KV_HEADS, axis=0) for x in (k, v)
        )
        for row in range(count):
            place = start + row
            seen = slice(place // chunk * chunk, place + 1)
            weights = np.exp(0.5 * np.einsum("nh,nsh->ns", q[block, row], keys[:, seen]))
            expected = np.einsum("ns,nsh->nh", weights / weights.sum(1, keepdims=True), values[:, seen])
            np.testing.assert_allclose(got[block, row], expected, atol=1e-5)


def test_a_page_lies_in_one_chunk():
    one = jnp.zeros(1, jnp.int32)
    batch = BlockBatch(positions=one, page=one, offset=one, tables=one[None], starts=one, counts=one)
    pages = jnp.zeros((1, KV_HEADS, PAGE_SIZE, SIZE))
    with pytest.raises(ConfigError, match=r"page_size is 4, which does not divide .* attention_chunk_size of 6"):
        chunked_attention(jnp.zeros((1, 1, HEADS, SIZE)), KvPages(pages, pages), batch, 6, scale=1.0)
