"""Completions by the library: prompts of every kind, echo, log probabilities, and streams that add up."""

import asyncio

import numpy as np
import pytest
from stub_engine import StubEngine

from cvllm_jax.engine.scoring import prompt_logits
from cvllm_jax.openai import CompletionRequest, OpenAIAdapter, RequestError

PROMPT = "The licence of the work"


def request(**fields):
    return CompletionRequest.parse({"model": "any", "prompt": PROMPT, "temperature": 0, **fields})


@pytest.fixture
def adapter(tiny_engine):
    return OpenAIAdapter(tiny_engine)


@pytest.mark.parametrize("count", [1, 2])
def test_prompts_of_every_kind(adapter, count):
    texts = [PROMPT, "Another"][:count]
    ids = [adapter.engine.tokenize(text) for text in texts]
    whole = adapter.completion_sync(request(prompt=texts))
    assert whole.model == "any"
    assert [choice.index for choice in whole.choices] == list(range(count))
    assert whole.usage.prompt_tokens == sum(map(len, ids))
    assert whole.usage.completion_tokens <= 16 * count
    assert [c.text for c in adapter.completion_sync(request(prompt=ids)).choices] == [c.text for c in whole.choices]
    if count == 1:
        for prompt in (texts[0], ids[0]):
            assert adapter.completion_sync(request(prompt=prompt)).choices == whole.choices


def test_choices_of_many_prompts_count_on(adapter):
    answer = asyncio.run(adapter.completion(request(prompt=["a", "b", "a"], n=2, temperature=1, seed=5, max_tokens=8)))
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert texts[:2] == texts[4:]  # the same prompt and seed
    assert texts[0] != texts[1]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_sixteen_tokens_are_the_default_and_give_way(adapter):
    limit = adapter.engine.model_info().max_sequence_length
    for length, expected in ((10, 16), (limit - 5, 5)):
        answer = adapter.completion_sync(request(prompt=[5] * length, ignore_eos=True))
        assert answer.usage.completion_tokens == expected
        assert answer.choices[0].finish_reason == "length"


def test_fields_reach_the_engine():
    stub = StubEngine()
    OpenAIAdapter(stub).completion_sync(
        request(
            temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, frequency_penalty=0.2, presence_penalty=-0.2, seed=-7,
            repetition_penalty=1.1, stop=["x", "y"], stop_token_ids=[3], logit_bias={"5": -100}, max_tokens=3,
            min_tokens=2, ignore_eos=True, logprobs=0, user="me", n=1, best_of=1, suffix="",
        )
    )  # fmt: skip
    prompt, params = stub.seen[-1]
    assert bytes(prompt) == PROMPT.encode()
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 5, 0.1)
    assert (params.frequency_penalty, params.presence_penalty, params.repetition_penalty) == (0.2, -0.2, 1.1)
    assert (params.seed, params.stop_sequences, params.stop_token_ids) == (-7, ("x", "y"), (3,))
    assert (params.logit_bias, params.max_tokens, params.min_tokens) == ({5: -100.0}, 3, 2)
    assert (params.ignore_eos, params.logprobs, params.top_logprobs) == (True, True, 0)


def test_log_probabilities_of_prompt_and_answer(adapter):
    fields = {"echo": True, "logprobs": 2, "max_tokens": 6, "ignore_eos": True}
    choice = adapter.completion_sync(request(**fields)).choices[0]
    found, tokens = choice.logprobs, adapter.engine.tokenize(PROMPT)
    assert choice.text.startswith(PROMPT)
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
    assert len(found.tokens) == len(tokens) + 6
    assert found.token_logprobs[0] is found.top_logprobs[0] is None
    for token, offset in zip(found.tokens, found.text_offset):
        assert token.startswith("bytes:") or choice.text[offset:].startswith(token)
    for token, logprob, top in list(zip(found.tokens, found.token_logprobs, found.top_logprobs))[1:]:
        assert 1 <= len(top) <= 3
        assert top[token] == logprob <= max(top.values())
    logits = prompt_logits(adapter.engine, tokens, blocks=1).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = logprobs[np.arange(len(tokens) - 1), tokens[1:]]
    np.testing.assert_allclose(found.token_logprobs[1 : len(tokens)], expected, atol=1e-4)
    alone = adapter.completion_sync(request(**{**fields, "echo": False})).choices[0]
    assert alone.logprobs.tokens == found.tokens[len(tokens) :]
    assert [offset + len(PROMPT) for offset in alone.logprobs.text_offset] == found.text_offset[len(tokens) :]


def test_a_prompt_can_be_scored_without_an_answer(adapter):
    steps = adapter.engine.stats().steps
    answer = adapter.completion_sync(request(echo=True, logprobs=0, max_tokens=0, n=2))
    assert [choice.text for choice in answer.choices] == [PROMPT] * 2
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage.completion_tokens == 0
    assert all(len(top) == 1 for top in answer.choices[0].logprobs.top_logprobs[1:])
    assert adapter.engine.stats().steps == steps


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"n": 2, "seed": 1, "temperature": 1.0}, {"logprobs": 1, "echo": True}, {"prompt": ["a", [7, 8], "b"][::2]},
        {"max_tokens": 0, "echo": True, "logprobs": 1}, {"stop": [" "], "max_tokens": 40, "logprobs": 0},
        {"prompt": [[40, 41], [42]], "echo": True, "n": 2, "seed": 4, "temperature": 1.0},
    ],
)  # fmt: skip
def test_streams_add_up_to_the_whole_answer(adapter, fields):
    async def stream():
        return [chunk async for chunk in adapter.completion_stream(request(**fields))]

    whole = adapter.completion_sync(request(**fields, stream_options={"include_usage": True}))
    for chunks in (asyncio.run(stream()), list(adapter.completion_stream_sync(request(**fields)))):
        assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1
        for choice in whole.choices:
            parts = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
            assert "".join(part.text for part in parts) == choice.text
            assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + [choice.finish_reason]
            written = [part.logprobs for part in parts if part.logprobs is not None]
            if choice.logprobs is not None:
                for name, values in choice.logprobs:
                    assert [value for part in written for value in getattr(part, name)] == values


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt[0]"), ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": ""}, "prompt"), ({"prompt": ["a", ""]}, "prompt[1]"), ({"prompt": [100_000]}, "prompt"),
        ({"prompt": [[3], [100_000]]}, "prompt[1]"), ({"prompt": [-1]}, "prompt[0]"), ({"prompt": 5}, "prompt"),
        ({"prompt": None}, "prompt"), ({"prompt": [5] * 300}, "prompt"), ({"max_tokens": 999}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"), ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"), ({"best_of": 3, "n": 2}, "best_of"), ({"suffix": "x"}, "suffix"),
        ({"n": 0}, "n"), ({"n": 129}, "n"), ({"n": 128, "prompt": ["a"] * 17}, "n"),
        ({"stop": ""}, "stop"), ({"stop": ["a"] * 5}, "stop"),
        ({"temperature": 3}, "temperature"), ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"), ({"min_tokens": 20}, "min_tokens"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"), ({"echo": "yes"}, "echo"),
    ],
)  # fmt: skip
def test_what_is_refused(adapter, fields, param):
    with pytest.raises(RequestError) as caught:
        adapter.completion_sync(request(**fields))
    assert caught.value.param.startswith(param)
    assert "\n" not in str(caught.value)


def test_best_of_needs_no_choosing_where_all_are_wanted(adapter):
    assert len(adapter.completion_sync(request(n=2, best_of=2)).choices) == 2
    with pytest.raises(RequestError, match=r"HINT: you must set 'n' \(currently 2\) to be at most 'best_of'") as caught:
        adapter.completion_sync(request(n=2, best_of=1))
    assert caught.value.param == "best_of"
