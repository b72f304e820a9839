"""Whole engines against transformers; tests/golden/README.md says what is in the files.

Two tiny models stand for all: test_family_goldens.py has the logits of every one.
"""

import numpy as np
import pytest

from cvllm_jax import EngineConfig, GenerationParams, InferenceEngine
from cvllm_jax.engine.scoring import prompt_logits

CASES = (pytest.param("llama_mha_untied", marks=pytest.mark.slow), "mistral_window")
LENGTHS = (1, 16, 17, 48)


def golden(pytestconfig, *parts):
    return pytestconfig.rootpath.joinpath("tests", "golden", *parts)


def engine_for(path, **settings):
    # one sequence and no warm-up: the fewest programs that serve
    return InferenceEngine.new_sync(
        EngineConfig(
            model_path=str(path), device="cpu", dtype="f32", max_batch_size=1, max_sequence_length=128, warmup=False,
            **settings,
        )
    )  # fmt: skip


def assert_greedy(got, expected, length, difference=1e-4):
    """Equal as far as the reference is sure of its choice; past a near tie the texts may part."""
    want, margin = expected[f"greedy_{length}"], expected[f"margin_{length}"]
    sure = len(want) if (margin > difference).all() else int((margin <= difference).argmax())
    assert got[:sure] == want[:sure].tolist()
    return sure


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens(case, pytestconfig):
    folder = golden(pytestconfig, "llama", case)
    expected = np.load(folder / "expected.npz")
    greedy = GenerationParams(max_tokens=16, temperature=0.0, ignore_eos=True)
    with engine_for(folder) as whole, engine_for(folder, prefill_chunk_size=16) as chunked:
        for length in LENGTHS:
            prompt = expected[f"prompt_{length}"].tolist()
            padded = prompt + [0] * (max(LENGTHS) - length)  # what follows changes nothing; one program scores all
            logits = prompt_logits(whole, padded, blocks=1)[:length]
            np.testing.assert_allclose(logits, expected[f"logits_{length}"], atol=1e-4, rtol=0)
            for engine in (whole, chunked):  # by the paged cache, one token at a time
                assert assert_greedy(engine.generate_sync(prompt, greedy).tokens, expected, length) == 16


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [4, 16])
def test_the_demo_model(demo_model_path, pytestconfig, prompts):
    """SmolLM2 in f32: the last logits, every position's logsumexp, and 64 greedy tokens."""
    expected = np.load(golden(pytestconfig, "smollm2.npz"))
    engine = InferenceEngine.new_sync(
        EngineConfig(
            model_path=str(demo_model_path), device="cpu", dtype="f32", max_batch_size=16, max_sequence_length=256,
            prefill_chunk_size=64, warmup=False, kv_cache_memory=256 << 20,
        )
    )  # fmt: skip
    greedy = GenerationParams(max_tokens=64, temperature=0.0, ignore_eos=True)
    with engine:
        streams = [engine.generate_stream_sync(expected[f"prompt_{i}"].tolist(), greedy) for i in range(prompts)]
        for index, stream in enumerate(streams):
            prompt = expected[f"prompt_{index}"]
            assert_greedy(stream.finish().tokens, expected, index, difference=2e-3)
            if index % 4:  # every fourth prompt in full: scoring takes as long as the rest
                continue
            padded = prompt.tolist() + [0] * (144 - len(prompt))
            logits = prompt_logits(engine, padded, blocks=1)[: len(prompt)].astype(np.float64)
            assert np.abs(logits[-1] - expected[f"logits_{index}"]).max() <= 2e-3
            total = np.log(np.exp(logits).sum(-1))
            np.testing.assert_allclose(total, expected[f"logsumexp_{index}"], atol=2e-3, rtol=0)
            chosen = logits[np.arange(len(prompt) - 1), prompt[1:]]
            np.testing.assert_allclose(chosen, expected[f"chosen_{index}"], atol=2e-3, rtol=0)
