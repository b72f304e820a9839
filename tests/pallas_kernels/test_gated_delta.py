"""The gated delta rule and its convolution against the same token by token in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.gated_delta import attend, convolve

HEADS, KEY, VALUE, SLOTS, WIDTH = 2, 8, 4, 4, 3


def slow_rule(q, k, v, decay, beta, memory):
    """One sequence: what its queries read, and its memory after it."""
    memory, out = memory.astype(np.float64), []
    for i in range(len(q)):
        memory = memory * np.exp(decay[i])[:, None, None]
        correction = (v[i] - np.einsum("nk,nkv->nv", k[i], memory)) * beta[i][:, None]
        memory = memory + k[i][:, :, None] * correction[:, None]
        out.append(np.einsum("nk,nkv->nv", q[i], memory))
    return np.array(out), memory


def sequence(rng, length, *, alike=False):
    """Queries, keys, values, decays and betas of one sequence."""
    q, k = rng.standard_normal((2, length, HEADS, KEY))
    if alike:
        k[:] = k[:1]
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v = rng.standard_normal((length, HEADS, VALUE))
    decay = -rng.exponential(0.01 if alike else 0.5, (length, HEADS))
    return q, k, v, decay, rng.uniform(0.9 if alike else 0, 1, (length, HEADS))


def packed(parts, queries):
    """Arrays of blocks of ``queries`` tokens; past a block's tokens there is anything."""
    arrays = []
    for each in zip(*parts, strict=True):
        shape = (len(parts), queries, *each[0].shape[1:])
        array = np.full(shape, 3.0, np.float32)
        for row, numbers in enumerate(each):
            array[row, : len(numbers)] = numbers
        arrays.append(jnp.asarray(array))
    return arrays


@pytest.mark.parametrize("queries", [1, 5, 64, 130])
@pytest.mark.parametrize("alike", [False, True])
def test_blocks_of_sequences_follow_one_another(queries, alike):
    """Blocks of two sequences between each other, full and in part, one that starts and one that goes on."""
    rng = np.random.default_rng(queries)
    counts = [queries, queries, max(queries // 2, 1), queries, 0] if queries > 1 else [1, 1, 0]
    owners = [2, 0, 2, 0, 1] if queries > 1 else [2, 0, 1]
    starts = [0, 70, queries, 70 + queries, 0] if queries > 1 else [0, 70, 0]
    whole = {
        slot: sequence(rng, sum(c for c, o in zip(counts, owners, strict=True) if o == slot), alike=alike)
        for slot in set(owners)
    }
    memory = rng.standard_normal((SLOTS, HEADS, KEY, VALUE)).astype(np.float32)
    taken, parts = dict.fromkeys(whole, 0), []
    for count, owner in zip(counts, owners, strict=True):
        parts.append([array[taken[owner] : taken[owner] + count] for array in whole[owner]])
        taken[owner] += count
    y, after = jax.jit(attend)(
        *packed(parts, queries), jnp.asarray(memory), *(jnp.asarray(x, jnp.int32) for x in (owners, starts, counts))
    )
    want = {
        slot: slow_rule(*arrays, memory[slot] * (0 if slot == 2 else 1)) for slot, arrays in whole.items()
    }
    taken = dict.fromkeys(whole, 0)
    for row, (count, owner) in enumerate(zip(counts, owners, strict=True)):
        expected = want[owner][0][taken[owner] : taken[owner] + count]
        np.testing.assert_allclose(y[row, :count], expected.reshape(count, HEADS, VALUE), atol=2e-4)
        taken[owner] += count
    for slot in range(SLOTS):
        kept = want[slot][1] if slot in want else memory[slot]
        np.testing.assert_allclose(after[slot], kept, atol=2e-4)
    np.testing.assert_array_equal(np.asarray(after)[[1, 3]], memory[[1, 3]])  # nobody's, and of a block without tokens


@pytest.mark.parametrize("queries", [1, 6])
def test_the_convolution_sees_what_came_before(queries):
    rng = np.random.default_rng(queries)
    channels, window = 5, WIDTH + 1
    inputs = rng.standard_normal((SLOTS, WIDTH, channels)).astype(np.float32)
    weight = rng.standard_normal((channels, window)).astype(np.float32)
    blocks = [(2, 0, queries), (0, 9, queries), (1, 0, 0)]
    if queries > 1:
        blocks += [(2, queries, 2), (2, queries + 2, 4)]
    x = rng.standard_normal((len(blocks), queries, channels)).astype(np.float32)
    columns = (jnp.asarray(column, jnp.int32) for column in zip(*blocks, strict=True))
    y, after = jax.jit(convolve)(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(inputs), *columns)
    history = {slot: inputs[slot] * (slot == 0) for slot in (0, 2)}
    for row, (slot, _, count) in enumerate(blocks):
        if count:
            history[slot] = np.concatenate([history[slot], x[row, :count]])
            ends = range(len(history[slot]) - count, len(history[slot]))
            want = [(history[slot][end - WIDTH : end + 1] * weight.T).sum(0) for end in ends]
            np.testing.assert_allclose(y[row, :count], want, atol=1e-5)
    for slot in range(SLOTS):
        np.testing.assert_array_equal(after[slot], history[slot][-WIDTH:] if slot in history else inputs[slot])


@pytest.mark.parametrize("queries", [1, 64])
def test_donated_memories_are_written_in_place(queries):
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    memory, ints = shape((500, 4, 32, 32)), jax.ShapeDtypeStruct((2,), jnp.int32)
    vectors, numbers = shape((2, queries, 4, 32)), shape((2, queries, 4))
    lowered = jax.jit(attend, donate_argnums=5).lower(*[vectors] * 3, numbers, numbers, memory, ints, ints, ints)
    analysis = lowered.compile().memory_analysis()
    assert analysis.alias_size_in_bytes >= memory.size * 4 and analysis.temp_size_in_bytes < memory.size
