"""The scripted model by itself: what it finds in the cache, at any distance and in every type of cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scripted import RULES, write_script

from cvllm_jax.models.layers import BlockBatch
from cvllm_jax.testing import SCRIPTED, open_scripted
from cvllm_jax.testing.vocabulary import MAX_LINES, line_token
from pallas_kernels.kv_write import KvPages, has_scales

PAGE, PAGES = 16, 2049  # the whole context, and page 0 for padding
LETTER = ord("x")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    return open_scripted(f"scripted:{write_script(tmp_path_factory.mktemp('model'), RULES)}")


class Model:
    """One sequence, read in blocks of any size at any position."""

    def __init__(self, script, dtype, cache_dtype):
        self.module = SCRIPTED.module(SCRIPTED.config(script.config), dtype)
        for name, value in script.weights.items():
            getattr(self.module, name).set_value(jnp.asarray(value))
        shape = (PAGES, 1, PAGE, 64)
        scales = [jnp.ones(shape[:3]), jnp.ones(shape[:3])] if has_scales(cache_dtype) else []
        # zeros are what letters leave there
        self.cache = (KvPages(jnp.zeros(shape, cache_dtype), jnp.zeros(shape, cache_dtype), *scales),)
        graph, self.state = nnx.split(self.module)
        self.step = jax.jit(lambda state, *args: nnx.merge(graph, state)(*args), donate_argnums=2)

    def read(self, tokens, start):
        """Hidden states of tokens from a position on."""
        positions = jnp.arange(start, start + len(tokens), dtype=jnp.int32)
        batch = BlockBatch(
            positions=positions, page=1 + positions // PAGE, offset=positions % PAGE,
            tables=jnp.arange(1, PAGES, dtype=jnp.int32)[None], starts=positions[:1],
            counts=jnp.asarray([len(tokens)], jnp.int32),
        )  # fmt: skip
        hidden, self.cache = self.step(self.state, jnp.asarray(tokens, jnp.int32), self.cache, (batch,))
        return np.asarray(hidden).astype(int).tolist()


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [(jnp.float32, jnp.float32), *((jnp.bfloat16, cache) for cache in (jnp.bfloat16, jnp.int8, jnp.float8_e4m3fn))],
)
def test_the_last_line_named_is_found_at_every_distance(script, dtype, cache_dtype):
    model = Model(script, dtype, cache_dtype)
    assert model.read([LETTER], 32767) == [[-1, 32767, LETTER]]
    for position, line in ((3, 5), (20000, 0), (20001, MAX_LINES - 1), (32766, 682)):
        assert model.read([line_token(line)], position) == [[line, 0, line_token(line)]]
        for later in {min(position + distance, 32767) for distance in (1, 2, 255, 4097, 32767)}:
            assert model.read([LETTER], later) == [[line, later - position, LETTER]]
    # what comes later is not seen, and blocks see what single tokens see
    assert model.read([LETTER] * 64, 19990)[8:13] == [[5, 19998 + i - 3, LETTER] for i in range(5)]
    block = [LETTER] * 62 + [line_token(9), LETTER]
    assert model.read(block, 100)[61:] == [[5, 158, LETTER], [9, 0, line_token(9)], [9, 1, LETTER]]


def test_logits_say_the_line_and_then_the_end(script):
    model = Model(script, jnp.float32, jnp.float32).module
    text = RULES[0]["say"].encode()
    hidden = [[1, distance, LETTER] for distance in (0, 1, len(text) - 1, len(text), len(text) + 1, 30000)]
    logits = np.asarray(model.logits(jnp.asarray(hidden, jnp.float32)))
    end = script.eos_token_ids[0]
    assert logits.argmax(-1).tolist() == [text[0], text[1], text[-1], end, end, end]
    others = np.partition(logits, -2, axis=-1)
    assert (others[:, -1] == 0).all() and (others[:, -2] <= -30).all()


def test_without_a_line_it_says_the_alphabet(script):
    model = Model(script, jnp.float32, jnp.float32).module
    logits = model.logits(jnp.asarray([[-1, position, LETTER] for position in range(60)], jnp.float32))
    assert bytes(logits.argmax(-1).tolist()) == (b"abcdefghijklmnopqrstuvwxyz" * 3)[1:61]
