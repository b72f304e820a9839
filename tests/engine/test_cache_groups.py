"""Models with layers of both kinds: pages that windows have left serve others, and no token shows it.

The reference is the chunked prefill that scores texts: it keeps every page of every layer, and windows only mask.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, wait_until_idle
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from cvllm_jax import ConfigError, EngineConfig, GenerationParams, InferenceEngine
from cvllm_jax.engine.devices import geometry_of, step_shapes
from cvllm_jax.engine.pages import most_pages
from cvllm_jax.engine.pool_sizes import PoolShares, page_bytes, pages_for
from cvllm_jax.engine.scoring import PromptScorer
from cvllm_jax.models.cache_groups import CacheGroup, cache_groups, group_of_layers
from cvllm_jax.models.gemma3 import Gemma3Config

FOLDER = GOLDEN / "families" / "gemma3"
LAYERS = {"num_hidden_layers": 4, "sliding_window": 16, "sliding_window_pattern": 4}
LENGTH, PAGE = 200, 4
#: 2 (k and v) * 4 layers * 2 kv heads * 4 tokens * 8 floats * 4 bytes.
PAGE_BYTES = 2 * 4 * 2 * PAGE * 8 * 4
#: If every layer kept all tokens, so many of them would fit; one sequence of ``LENGTH`` and a quarter of the next.
TOKENS = 252
MEMORY = (TOKENS // PAGE + 1) * PAGE_BYTES


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Gemma 3 with three layers behind windows of 16 tokens and one that sees all, and little memory."""
    folder = tmp_path_factory.mktemp("gemma3")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN / "llama" / "llama_gqa_tied" / name, folder)
    (folder / "config.json").write_text(json.dumps(json.loads((FOLDER / "config.json").read_text()) | LAYERS))
    weights = load_file(FOLDER / "model.safetensors")
    surplus = ("model.layers.4.", "model.layers.5.")
    kept = {name: value for name, value in weights.items() if not name.startswith(surplus)}
    save_file(kept, folder / "model.safetensors")
    config = EngineConfig(
        model_path=str(folder), device="cpu", dtype="f32", page_size=PAGE, kv_cache_memory=MEMORY, debug=True,
        max_batch_size=4, max_sequence_length=LENGTH, prefill_chunk_size=16, warmup=False,
    )  # fmt: skip
    with InferenceEngine(config) as engine:
        engine.scorer = PromptScorer(engine)
        yield engine
        wait_until_idle(engine)


def text(seed, length):
    return np.random.default_rng(seed).integers(3, 90, length).tolist()


def params(count, seed=None):
    sampling = {"temperature": 0.0} if seed is None else {"temperature": 1.0, "seed": seed}
    return GenerationParams(max_tokens=count, ignore_eos=True, logprobs=True, **sampling)


def check(engine, prompt, output, *, greedy=True):
    """The tokens are the likeliest, and all have the log probabilities, of a model that forgets nothing."""
    scored = engine.scorer.score_sync([*prompt, *output.tokens], top=1)
    chosen = scored.chosen[len(prompt) - 1 :]
    np.testing.assert_allclose(output.logprobs, chosen, atol=1e-4)
    if greedy:
        likeliest = [top[0].logprob for top in scored.top[len(prompt) - 1 :]]
        np.testing.assert_allclose(chosen, likeliest, atol=1e-4)


def together(engine, prompts, params):
    """The outputs, and how many sequences ran at the same time at most."""
    streams = [engine.generate_stream_sync(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
    most, outputs = 0, []
    for stream in streams:
        for _ in stream:
            most = max(most, engine.stats().running)
        outputs.append(stream.output)
    return outputs, most


@pytest.mark.parametrize("prompt", [text(1, 1), text(2, 16), text(3, 100)], ids=len)
def test_long_answers_and_long_prompts(engine, prompt):
    """Prompts within a chunk, and in many."""
    check(engine, prompt, engine.generate_sync(prompt, params(LENGTH - len(prompt))))


def test_a_prefix_hit(engine):
    prompt = text(4, 80)
    first = engine.generate_sync(prompt, params(40))
    turn = [*prompt, *first.tokens, *text(5, 7)]
    second = engine.generate_sync(turn, params(60))
    assert (first.cached_tokens, second.cached_tokens) == (0, (len(prompt) + 39) // PAGE * PAGE)
    check(engine, turn, second)
    # nobody has gone on from here since its windows were left: they may be gone, and must not be half there
    branch = [*prompt[:40], *text(6, 30)]
    check(engine, branch, engine.generate_sync(branch, params(60)))


def test_more_sequences_run_in_the_same_memory(engine):
    """Four of 128 tokens where all pages of all layers would hold not even two."""
    before, prompts = engine.stats().preemptions, [text(seed, 8) for seed in range(10, 14)]
    outputs, most = together(engine, prompts, [params(120)] * 4)
    # the count is taken where tokens are read, which may be late
    assert most >= 3 and engine.stats().preemptions == before
    assert 2 * TOKENS < 4 * 128
    for prompt, output in zip(prompts, outputs, strict=True):
        check(engine, prompt, output)


def test_preemption(engine):
    """Four that fit alone and not together, sampled: each draws what it would have drawn."""
    before, prompts = engine.stats().preemptions, [text(seed, 30) for seed in range(20, 24)]
    wanted = [params(LENGTH - 30, seed) for seed in range(4)]
    outputs, _ = together(engine, prompts, wanted)
    assert engine.stats().preemptions > before
    for prompt, each, output in zip(prompts, wanted, outputs, strict=True):
        check(engine, prompt, output, greedy=False)
        assert engine.generate_sync(prompt, each).tokens == output.tokens


def test_several_answers_to_one_prompt(engine):
    """Their prompt is computed once, and each goes on in pages of its own."""
    prompt, wanted = text(7, 61), [params(50, seed) for seed in range(3)]
    engine.generate_sync(prompt, params(1))
    outputs, _ = together(engine, [prompt] * 3, wanted)
    assert len({tuple(output.tokens) for output in outputs}) == 3
    for output in outputs:
        assert output.cached_tokens == 60
        check(engine, prompt, output, greedy=False)


def test_statistics_tell_the_groups_apart(engine):
    stats = engine.stats()
    whole, windowed = stats.cache_groups
    assert (whole.window, windowed.window) == (None, 16)
    assert stats.pages_total == whole.pages_total + windowed.pages_total == sum(engine.runner.settings.num_pages) - 2
    # a quarter of the layers sees all; not a byte more than was given
    assert (whole.pages_total + 1) * PAGE_BYTES // 4 + (windowed.pages_total + 1) * PAGE_BYTES * 3 // 4 <= MEMORY
    assert whole.pages_total > 2 * windowed.pages_total


def test_groups_of_layers():
    assert cache_groups((None, None)) == (CacheGroup(None, (0, 1)),)
    assert cache_groups((8, 8)) == (CacheGroup(8, (0, 1)),)
    mixed = cache_groups((8, None, 32, None))
    assert mixed == (CacheGroup(None, (1, 3)), CacheGroup(32, (0, 2)))
    assert group_of_layers(mixed) == (1, 0, 1, 0)


def sizes(model, memory, **settings):
    """Pages of each group and the longest sequence, in bf16 on a CPU."""
    config = EngineConfig(model_path="-", device="cpu", kv_cache_memory=memory, **settings)
    geometry = geometry_of(config, model, jnp.bfloat16)
    return pages_for(config, model, geometry, jax.devices("cpu")[0], step_shapes(config, "cpu")), geometry


def gemma3(**changes):
    """The shape of Gemma 3 27B."""
    shape = {
        "num_hidden_layers": 62, "hidden_size": 5376, "intermediate_size": 21504, "num_attention_heads": 32,
        "num_key_value_heads": 16, "head_dim": 128, "sliding_window": 1024,
    }  # fmt: skip
    return Gemma3Config.from_dict(shape | changes)


def test_a_real_shape_holds_several_times_as_many_tokens():
    """Of 62 layers only 10 see a token after a window has left it."""
    alike = gemma3(sliding_window_pattern=1)
    (pages, _), geometry = sizes(gemma3(), 32 * 2**30)
    assert sum(count * cost for count, cost in zip(pages, page_bytes(gemma3(), geometry), strict=True)) <= 32 * 2**30

    def running(model, length):
        counts = sizes(model, 32 * 2**30)[0][0]
        needs = [most_pages(length, group.window, 16, 64) for group in model.cache_groups]
        return min((count - 1) // need for count, need in zip(counts, needs, strict=True))

    assert running(gemma3(), 8192) >= 2 * running(alike, 8192)
    assert running(gemma3(), 32768) >= 4 * running(alike, 32768)
    assert sizes(gemma3(), 8 * 2**30)[0][1] >= 3 * sizes(alike, 8 * 2**30)[0][1]


def test_too_little_memory_is_refused():
    with pytest.raises(ConfigError, match=r"holds \d+ tokens of KV cache .* but 8192 are needed: raise kv_"):
        sizes(gemma3(), 2**30, max_sequence_length=8192)


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 30)), st.integers(1, 3000), st.integers(1, 9000), st.integers(1, 64),
    st.sampled_from([1, 4, 16]), st.sampled_from([1, 64, None]), st.integers(10, 10**6),
)  # fmt: skip
def test_memory_is_divided_without_remainder_or_excess(each, window, longest, slots, size, step, budget):
    needs = [lambda length, window=w: most_pages(length, window, size, step) for w in (None, window)]
    shares = PoolShares(
        bytes=each, needs=needs, lengths=(size, longest), slots=slots, most=[slots * need(longest) for need in needs]
    )
    for least in (1, longest):
        if not shares.holds(budget, least):
            continue
        pages = shares.divide(budget, least)
        left = budget - pages[0] * each[0] - pages[1] * each[1]
        assert left >= 0
        for count, need, most, cost in zip(pages, needs, shares.most, each, strict=True):
            assert need(least) <= count <= most and (count == most or left < cost)
