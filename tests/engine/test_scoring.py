"""Log probabilities of prompts: right, chunk by chunk, and beside whatever else the engine does."""

import asyncio

import numpy as np
import pytest

from cvllm_jax.engine.scoring import PromptScorer, prompt_logits, scoring_widths
from cvllm_jax.errors import GenerationError
from cvllm_jax.params import GenerationParams

LONG = [3 + (7 * i) % 250 for i in range(200)]  # several chunks, the last one partly filled


@pytest.fixture(scope="module")
def scorer(make_engine):
    return PromptScorer(make_engine())


@pytest.mark.parametrize("length", [2, 64, 65, 200])
def test_log_probabilities_are_those_of_the_logits(scorer, tiny_engine, length):
    tokens = LONG[:length]
    logits = prompt_logits(tiny_engine, tokens + [0] * (200 - length), blocks=1)[:length].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scored = scorer.score_sync(tokens, top=3)
    assert len(scored.chosen) == len(scored.top) == length - 1
    np.testing.assert_allclose(scored.chosen, expected[np.arange(length - 1), tokens[1:]], atol=1e-4)
    for entries, row in zip(scored.top, expected):
        np.testing.assert_allclose([entry.logprob for entry in entries], np.sort(row)[:-4:-1], atol=1e-4)
        np.testing.assert_allclose([row[entry.token] for entry in entries], np.sort(row)[:-4:-1], atol=1e-4)


def test_nothing_comes_before_a_single_token(scorer):
    assert scorer.score_sync([5]).chosen == []


@pytest.mark.parametrize("tokens", [[], [5] * 257])
def test_prompts_that_do_not_fit_are_refused(scorer, tokens):
    with pytest.raises(GenerationError, match="1 to 256 tokens"):
        scorer.score_sync(tokens)


def test_serving_goes_on_and_neither_pages_nor_steps_are_touched(scorer, tiny_engine):
    expected = scorer.score_sync(LONG).chosen
    before = tiny_engine.stats()
    assert before.compilations == tiny_engine.stats().compilations

    async def scenario():
        params = GenerationParams(max_tokens=60, temperature=0.0, ignore_eos=True)
        answers = [asyncio.create_task(tiny_engine.generate(LONG[:20], params)) for _ in range(3)]
        scores = await asyncio.gather(*(scorer.score(LONG) for _ in range(3)))
        return scores, await asyncio.gather(*answers)

    scores, answers = asyncio.run(scenario())
    assert all(score.chosen == expected for score in scores)
    assert len({tuple(answer.tokens) for answer in answers}) == 1
    after = tiny_engine.stats()
    assert after.pages_free == after.pages_total
    assert after.compilations == before.compilations
    assert after.requests_completed == before.requests_completed + 3


def test_cancelling_leaves_the_scorer_free(scorer):
    async def scenario():
        tasks = [asyncio.create_task(scorer.score(LONG)) for _ in range(4)]
        await asyncio.sleep(0.001)
        for task in tasks[:3]:
            task.cancel()
        return await tasks[3]

    assert len(asyncio.run(scenario()).chosen) == len(LONG) - 1


def test_sizes_of_the_cache_are_few():
    assert scoring_widths(256, 16) == [16]
    assert scoring_widths(512, 16) == [32]
    assert scoring_widths(8192, 16) == [32, 128, 512]
    assert scoring_widths(131072, 16) == [32, 128, 512, 2048, 8192]
    assert scoring_widths(10, 16) == [1]
