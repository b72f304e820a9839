"""Writing keys and values into pages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_write import write_kv


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_token_goes_to_its_place_and_nothing_else_changes(dtype):
    rng = np.random.default_rng(0)
    pages = rng.standard_normal((6, 2, 4, 8)).astype(np.float32)
    new = rng.standard_normal((5, 2, 8)).astype(np.float32)
    page, offset = np.array([1, 1, 5, 3, 2]), np.array([0, 3, 1, 2, 0])
    got = write_kv(jnp.asarray(pages, dtype), jnp.asarray(new), jnp.asarray(page), jnp.asarray(offset))
    want = np.asarray(jnp.asarray(pages, dtype))
    want = want.copy()
    for t in range(5):
        want[page[t], :, offset[t]] = np.asarray(jnp.asarray(new[t], dtype))
    assert got.dtype == dtype
    np.testing.assert_array_equal(np.asarray(got), want)


def test_a_donated_pool_is_written_in_place():
    pages = jax.ShapeDtypeStruct((64, 2, 16, 8), jnp.float32)
    tokens = jax.ShapeDtypeStruct((4,), jnp.int32)
    new = jax.ShapeDtypeStruct((4, 2, 8), jnp.float32)
    memory = jax.jit(write_kv, donate_argnums=0).lower(pages, new, tokens, tokens).compile().memory_analysis()
    size = 64 * 2 * 16 * 8 * 4
    assert memory.alias_size_in_bytes >= size and memory.temp_size_in_bytes < size / 4
