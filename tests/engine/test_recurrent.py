"""Models with recurrent layers: each sequence has a place of its own, and no token shows who had it before.

The reference is the prefill that scores texts: it goes through a text from the beginning, with places of its own.
"""

import json
import shutil
import time

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, wait_until_idle

from cvllm_jax import ConfigError, EngineConfig, GenerationParams, InferenceEngine
from cvllm_jax.engine.devices import geometry_of
from cvllm_jax.engine.pool_sizes import page_bytes, place_bytes
from cvllm_jax.engine.scoring import PromptScorer
from cvllm_jax.grammar import RegexGrammar
from cvllm_jax.models.qwen3_5 import Qwen35Config

FOLDER = GOLDEN / "families" / "qwen3_5"
LENGTH, PAGE, ROWS = 224, 8, 2
#: 16 bytes of a value head's memory times key and value sizes, and 2 inputs of the convolution of 80 channels.
PLACES = (ROWS + 1) * 4 * (4 * 8 * 12 + 2 * 80)
#: 2 (k and v) * 2 kv heads * 8 tokens * 16 floats * 4 bytes, in the one layer that attends.
PAGE_BYTES = 2 * 2 * PAGE * 16 * 4


def config(folder, **options):
    return EngineConfig(
        model_path=str(folder), device="cpu", dtype="f32", page_size=PAGE, max_batch_size=ROWS, decode_steps=4,
        prefill_chunk_size=128, warmup=False, debug=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3_5")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN / "llama" / "llama_gqa_tied" / name, folder)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FOLDER / name, folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    """Pages for one sequence of the longest and a half."""
    memory = PLACES + PAGE_BYTES * (1 + LENGTH // PAGE * 3 // 2)
    with InferenceEngine(config(folder, max_sequence_length=LENGTH, kv_cache_memory=memory)) as engine:
        engine.scorer = PromptScorer(engine)
        yield engine
        wait_until_idle(engine)


def text(seed, length):
    return np.random.default_rng(seed).integers(3, 90, length).tolist()


def params(count):
    return GenerationParams(max_tokens=count, temperature=0.0, ignore_eos=True, logprobs=True)


def check(engine, prompt, output):
    """The tokens are the likeliest, and have the log probabilities, of a model that reads the text once."""
    scored = engine.scorer.score_sync([*prompt, *output.tokens], top=1)
    chosen = scored.chosen[len(prompt) - 1 :]
    np.testing.assert_allclose(output.logprobs, chosen, atol=1e-4)
    np.testing.assert_allclose(chosen, [top[0].logprob for top in scored.top[len(prompt) - 1 :]], atol=1e-4)


def test_sequences_of_all_lengths_run_together(engine):
    """More of them than places, prompts in blocks of their own beside decoding, and places that change hands."""
    prompts = [text(seed, length) for seed, length in enumerate((1, 2, 3, 5, 63, 64, 65, 130, 17))]
    streams = [engine.generate_stream_sync(prompt, params(6 + i)) for i, prompt in enumerate(prompts)]
    for i, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
        output = stream.finish()
        assert len(output.tokens) == 6 + i
        check(engine, prompt, output)


def test_a_sequence_that_was_preempted_says_the_same(engine):
    before = engine.stats().preemptions
    prompts = [text(50 + i, 60) for i in range(3)]
    streams = [engine.generate_stream_sync(prompt, params(130)) for prompt in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        check(engine, prompt, stream.finish())
    assert engine.stats().preemptions > before


def test_a_place_is_clean_after_a_request_that_was_cancelled(engine):
    stream = engine.generate_stream_sync(text(1, 100), params(100))
    next(iter(stream))
    stream.close()
    prompt = text(2, 40)
    check(engine, prompt, engine.generate_sync(prompt, params(10)))


@pytest.mark.parametrize("halves", [False, True])
def test_forced_text_is_read_once(engine, monkeypatch, halves):
    """In one block, behind a row that it made void, or token by token where log probabilities are wanted."""
    grammar = RegexGrammar("[A-J]{3}#1234567#[A-J]{6}#7654321#[A-J]{8}")
    engine.compile_grammar(grammar)
    deadline = time.monotonic() + 300
    while not engine.runner.halves and time.monotonic() < deadline:
        time.sleep(0.01)
    monkeypatch.setattr(engine.runner, "halves", halves)
    for seed in range(3):
        wanted = {"temperature": 1.0, "seed": seed, "max_tokens": 60, "grammar": grammar}
        before = engine.stats().steps
        quick = engine.generate_sync(text(seed, 20), GenerationParams(**wanted))
        between = engine.stats().steps
        slow = engine.generate_sync(text(seed, 20), GenerationParams(**wanted, logprobs=True))
        assert quick.tokens == slow.tokens
        assert between - before < engine.stats().steps - between - 10


def test_a_prefix_is_not_found_again(engine):
    """Pages do not say what a recurrent layer remembered there."""
    prompt = text(3, 80)
    for _ in range(2):
        output = engine.generate_sync(prompt, params(4))
        assert output.cached_tokens == 0
        check(engine, prompt, output)
    assert engine.stats().pages_cached == 0


def test_places_count_as_memory(folder):
    model = Qwen35Config.from_dict(json.loads((folder / "config.json").read_text()))
    options = config(folder)
    geometry = geometry_of(options, model, jnp.float32)
    assert (place_bytes(options, model, geometry), page_bytes(model, geometry)) == (PLACES, (PAGE_BYTES,))
    short = config(folder, max_sequence_length=LENGTH, kv_cache_memory=PLACES + 20 * PAGE_BYTES)
    with pytest.raises(ConfigError, match=f"holds 152 tokens .* beside {PLACES} bytes for the states of 2 sequences"):
        InferenceEngine(short)
