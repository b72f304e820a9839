"""Requests: what is refused and how, when an answer ends, and what its output holds."""

import math

import numpy as np
import pytest

from cvllm_jax import FinishReason, GenerationError, GenerationParams, InferenceRequest
from cvllm_jax.engine.scoring import prompt_logits
from cvllm_jax.errors import QueueFullError

PROMPT = [40, 41, 42, 43, 44]
LIMIT = 256


def greedy(**params):
    return GenerationParams(**{"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, **params})


@pytest.fixture
def answer(tiny_engine):
    """Twelve greedy tokens after PROMPT, and their text."""
    return tiny_engine.generate_sync(PROMPT, greedy())


# --- refusals ---


@pytest.mark.parametrize(("prompt", "message"), [
    ([], "the prompt is empty"), ("", "the prompt is empty"),
    ([1, 288], r"prompt holds token 288; the vocabulary has ids 0 to 287"), ([-1], "prompt holds token -1"),
    ([True], "whole numbers, not True"), ([1.0], "whole numbers, not 1.0"), (["a"], "whole numbers, not 'a'"),
    ([[1, 2]], r"whole numbers, not \[1, 2\]"), (None, "prompt must be text or a list of token ids, not NoneType"),
    (7, "prompt must be text or a list of token ids, not int"), (b"abc", "prompt must be .* not bytes"),
    ({1: 2}, "prompt must be .* not dict"), ([40] * 256, "the prompt has 256 tokens; .* at most 255"),
    ([40] * 5000, "the prompt has 5000 tokens"),
])  # fmt: skip
def test_prompts_that_are_refused(tiny_engine, prompt, message):
    with pytest.raises(GenerationError, match=message) as caught:
        tiny_engine.generate_sync(prompt, greedy())
    assert caught.value.param == "prompt"
    with pytest.raises(GenerationError, match=message):
        tiny_engine.generate_stream_sync(prompt)
    with pytest.raises(GenerationError, match=message):
        tiny_engine.add_request(InferenceRequest(prompt=prompt))


def test_arrays_of_token_ids_are_prompts(tiny_engine, answer):
    for prompt in (np.array(PROMPT, np.int32), np.array(PROMPT, np.uint64), tuple(PROMPT), range(40, 45)):
        assert tiny_engine.generate_sync(prompt, greedy()).tokens == answer.tokens
    with pytest.raises(GenerationError, match="whole numbers"):
        tiny_engine.generate_sync(np.array([1.0, 2.0]))


def test_a_text_with_a_lone_surrogate_is_refused(tiny_engine):
    from cvllm_jax import TokenizationError

    with pytest.raises(TokenizationError, match="surrogate"):
        tiny_engine.generate_sync("\ud800")


@pytest.mark.parametrize(("params", "field", "message"), [
    ({"max_tokens": 252}, "max_tokens", "max_tokens is 252, but after a prompt of 5 tokens .* 256 has room for 251"),
    ({"max_tokens": 2**31 - 1}, "max_tokens", "has room for 251"),
    ({"max_tokens": None, "min_tokens": 252}, "min_tokens", "min_tokens is 252, but there is room for 251"),
    ({"stop_token_ids": [288]}, "stop_token_ids", "stop_token_ids holds token 288"),
    ({"logit_bias": {288: 1.0}}, "logit_bias", "logit_bias holds token 288"),
])  # fmt: skip
def test_parameters_that_do_not_fit_this_model(tiny_engine, params, field, message):
    with pytest.raises(GenerationError, match=message) as caught:
        tiny_engine.generate_sync(PROMPT, greedy(**params))
    assert caught.value.param == field


@pytest.mark.parametrize(("field", "value"), [
    ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "hot"),
    ("top_p", 0.0), ("top_p", 1.1), ("top_p", math.nan), ("min_p", -0.1), ("min_p", 1.1), ("top_k", 0), ("top_k", 1.5),
    ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 1.0), ("max_tokens", True), ("min_tokens", -1),
    ("repetition_penalty", 0.0), ("repetition_penalty", math.nan), ("frequency_penalty", 2.1),
    ("presence_penalty", -2.1), ("seed", 2**64), ("seed", -(2**63) - 1), ("seed", 1.0), ("top_logprobs", 21),
    ("top_logprobs", 1), ("logprobs", 1), ("ignore_eos", "no"), ("stop_sequences", "one"), ("stop_sequences", [""]),
    ("stop_sequences", [1]), ("stop_token_ids", [-1]), ("stop_token_ids", [1.5]), ("logit_bias", {1: math.nan}),
    ("logit_bias", {1: 101}), ("logit_bias", {"1": 1}), ("min_tokens", 2**31),
    ("temperature", 10**400), ("stop_sequences", None), ("stop_sequences", 5),
    ("stop_sequences", {"a": 1}), ("stop_sequences", iter(["a"])),
    ("stop_token_ids", None), ("stop_token_ids", 5), ("stop_token_ids", iter([5])), ("logit_bias", None),
    ("logit_bias", [1]),
])  # fmt: skip
def test_parameters_that_no_model_takes(field, value):
    with pytest.raises(GenerationError) as caught:
        GenerationParams(**{field: value})
    assert caught.value.param == field and "\n" not in str(caught.value)


def test_numbers_that_python_does_not_print_are_refused(tiny_engine):
    huge = 10**5000
    for name in ("temperature", "top_p", "top_k", "max_tokens", "min_tokens", "seed"):
        with pytest.raises(GenerationError, match="not a number of 16610 bits"):
            GenerationParams(**{name: huge})
    for name, value in (("stop_token_ids", [huge]), ("stop_sequences", [[huge]]), ("logit_bias", {huge: 1})):
        with pytest.raises(GenerationError) as caught:
            GenerationParams(**{name: value})
        assert caught.value.param == name
    with pytest.raises(GenerationError, match="prompt holds token a number of 16610 bits; the vocabulary"):
        tiny_engine.generate_sync([1, huge])
    with pytest.raises(GenerationError, match="must hold token ids"):
        tiny_engine.generate_sync([1, [huge]])


def test_only_handles_are_cancelled(tiny_engine):
    with pytest.raises(GenerationError, match="cancel_request takes a RequestHandle, not int"):
        tiny_engine.cancel_request(5)


def test_handles_of_two_engines_differ(tiny_engine, tight_engine):
    engines = (tiny_engine, tight_engine)
    streams = [engine.generate_stream_sync(PROMPT, GenerationParams(max_tokens=2)) for engine in engines]
    handles = {stream.handle for stream in streams}
    for stream in streams:
        stream.finish()
    assert len(handles) == 2


def test_contradictions_are_refused():
    with pytest.raises(GenerationError, match=r"min_tokens \(6\) is more than max_tokens \(5\)"):
        GenerationParams(min_tokens=6, max_tokens=5)


def test_parameters_of_another_type_are_refused(tiny_engine):
    for params in ({"max_tokens": 5}, 5, "greedy"):
        with pytest.raises(GenerationError, match="params must be GenerationParams, not"):
            tiny_engine.generate_sync(PROMPT, params)
    with pytest.raises(GenerationError, match="add_request takes an InferenceRequest, not list"):
        tiny_engine.add_request(PROMPT)


def test_a_full_queue_refuses_and_takes_requests_again_later(make_engine):
    engine = make_engine(max_queue_size=2, max_batch_size=1)
    streams = [engine.generate_stream_sync(PROMPT, greedy(max_tokens=200)) for _ in range(3)]
    with pytest.raises(QueueFullError):
        engine.generate_stream_sync(PROMPT, greedy())
    assert issubclass(QueueFullError, GenerationError)
    streams[1].cancel()
    assert streams[1].finish().finish_reason is FinishReason.Cancelled
    last = engine.generate_stream_sync(PROMPT, greedy())
    assert last.finish().finish_reason is FinishReason.Length
    assert [len(stream.finish().tokens) for stream in (streams[0], streams[2])] == [200, 200]


# --- limits ---


def test_max_tokens(tiny_engine):
    for limit in (1, 2, 7):
        output = tiny_engine.generate_sync(PROMPT, greedy(max_tokens=limit))
        assert len(output.tokens) == limit and output.finish_reason is FinishReason.Length


def test_the_default_limit_gives_way_and_none_goes_to_the_end_of_the_context(tiny_engine):
    long = [40 + n % 7 for n in range(250)]
    params = {"temperature": 0.0, "ignore_eos": True}
    assert len(tiny_engine.generate_sync(PROMPT, GenerationParams(**params)).tokens) == LIMIT - 5
    assert len(tiny_engine.generate_sync(long, GenerationParams(**params)).tokens) == 6
    assert len(tiny_engine.generate_sync(long, GenerationParams(max_tokens=None, **params)).tokens) == 6
    assert len(tiny_engine.generate_sync([40] * 255, GenerationParams(max_tokens=1, **params)).tokens) == 1


def test_the_default_limit_is_256(make_engine):
    engine = make_engine(max_batch_size=1, max_sequence_length=512)
    assert len(engine.generate_sync(PROMPT, GenerationParams(temperature=0.0, ignore_eos=True)).tokens) == 256
    with pytest.raises(GenerationError):
        engine.generate_sync([40] * 300, GenerationParams(max_tokens=256))


# --- ends ---


def first_of(tokens, at_least=2):
    """A token at its first occurrence, not too early."""
    return next(i for i in range(at_least, len(tokens)) if tokens[i] not in tokens[:i])


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(tiny_engine, answer):
    at = first_of(answer.tokens)
    output = tiny_engine.generate_sync(PROMPT, greedy(stop_token_ids=[answer.tokens[at]]))
    assert output.finish_reason is FinishReason.Stop
    assert output.tokens == answer.tokens[:at] and output.text == tiny_engine.detokenize(output.tokens)


def test_an_end_token_ends_the_answer_unless_it_is_ignored(tiny_engine):
    for eos in tiny_engine.model_info().eos_token_ids:
        wanted = greedy(logit_bias={eos: 100.0}, ignore_eos=False)
        output = tiny_engine.generate_sync(PROMPT, wanted)
        assert (output.tokens, output.text, output.finish_reason) == ([], "", FinishReason.Stop)
        output = tiny_engine.generate_sync(PROMPT, greedy(logit_bias={eos: 100.0}))
        assert output.tokens == [eos] * 12 and output.text == "" and output.finish_reason is FinishReason.Length


def test_min_tokens_holds_back_end_tokens_and_stop_tokens(tiny_engine, answer):
    eos = tiny_engine.model_info().eos_token_ids[0]
    output = tiny_engine.generate_sync(PROMPT, greedy(logit_bias={eos: 100.0}, ignore_eos=False, min_tokens=5))
    assert len(output.tokens) == 5 and output.finish_reason is FinishReason.Stop and eos not in output.tokens
    at = first_of(answer.tokens)
    output = tiny_engine.generate_sync(PROMPT, greedy(stop_token_ids=[answer.tokens[at]], min_tokens=at))
    assert output.tokens == answer.tokens[:at]
    output = tiny_engine.generate_sync(PROMPT, greedy(stop_token_ids=[answer.tokens[at]], min_tokens=at + 1))
    assert output.tokens[:at] == answer.tokens[:at] and output.tokens[at] != answer.tokens[at]


def test_many_stop_tokens_with_a_penalty(tiny_engine, answer):
    stops = [token for token in range(100, 288) if token not in answer.tokens]
    output = tiny_engine.generate_sync(PROMPT, greedy(stop_token_ids=stops, presence_penalty=1e-9))
    assert output.tokens == answer.tokens
    with pytest.raises(GenerationError, match=r"min_tokens with \d+ end tokens; at most 64"):
        tiny_engine.generate_sync(PROMPT, greedy(stop_token_ids=stops, min_tokens=1))


def test_a_stop_string_across_tokens(tiny_engine, answer):
    pieces = [tiny_engine.detokenize([token]) for token in answer.tokens]
    assert "".join(pieces) == answer.text
    for start in range(3, 8):
        before = "".join(pieces[:start])
        stop = answer.text[len(before) - 1 : len(before) + len(pieces[start])]
        if answer.text.find(stop) != len(before) - 1:
            continue
        output = tiny_engine.generate_sync(PROMPT, greedy(stop_sequences=["never", stop]))
        assert output.finish_reason == FinishReason.StopSequence(stop)
        assert output.text == answer.text[: len(before) - 1]
        assert output.tokens == answer.tokens[: start + 1]  # tokens hold all, text ends before the stop string
        updates = list(tiny_engine.generate_stream_sync(PROMPT, greedy(stop_sequences=["never", stop])))
        assert "".join(update.text for update in updates) == output.text
        return
    pytest.fail("no part of the answer's text is its own first occurrence")


def test_held_back_text_comes_with_the_end(tiny_engine, answer):
    """A tail that begins a stop string is given out when the answer ends otherwise."""
    stop = answer.text[-2:] + "\x00more"
    stream = tiny_engine.generate_stream_sync(PROMPT, greedy(stop_sequences=[stop]))
    updates = list(stream)
    assert "".join(update.text for update in updates) == answer.text
    assert updates[-1].token is None and updates[-1].text
    assert [update.token for update in updates[:-1]] == answer.tokens
    assert stream.output.finish_reason is FinishReason.Length


# --- what an output holds ---


def test_log_probabilities_are_of_the_raw_distribution(tiny_engine):
    """Whatever changes the choice, they are what scoring the whole text gives."""
    params = GenerationParams(
        max_tokens=10, temperature=0.8, seed=5, top_k=40, repetition_penalty=1.3, frequency_penalty=0.3,
        logit_bias={50: 4.0}, logprobs=True, top_logprobs=3, ignore_eos=True,
    )  # fmt: skip
    output = tiny_engine.generate_sync(PROMPT, params)
    logits = prompt_logits(tiny_engine, PROMPT + output.tokens, blocks=1).astype(np.float64)
    raw = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert len(output.logprobs) == len(output.top_logprobs) == 10
    for step, token in enumerate(output.tokens):
        row = raw[len(PROMPT) - 1 + step]
        assert output.logprobs[step] == pytest.approx(row[token], abs=1e-4)
        best = np.argsort(-row)[:3]
        assert [entry.token for entry in output.top_logprobs[step]] == best.tolist()
        assert [entry.logprob for entry in output.top_logprobs[step]] == pytest.approx(row[best].tolist(), abs=1e-4)


def test_log_probabilities_are_there_only_when_asked_for(tiny_engine, answer):
    assert answer.logprobs is None and answer.top_logprobs is None
    output = tiny_engine.generate_sync(PROMPT, greedy(logprobs=True))
    assert len(output.logprobs) == 12 and output.top_logprobs is None
    assert all(update.logprob is None for update in tiny_engine.generate_stream_sync(PROMPT, greedy()))
    stream = tiny_engine.generate_stream_sync(PROMPT, greedy(logprobs=True, top_logprobs=20))
    updates = list(stream)
    assert [update.logprob for update in updates] == stream.output.logprobs
    assert [update.top_logprobs for update in updates] == stream.output.top_logprobs
    assert all(len(update.top_logprobs) == 20 for update in updates)


def test_statistics(tiny_engine):
    prompt = [60 + n % 9 for n in range(50)]
    first = tiny_engine.generate_sync(prompt, greedy())
    again = tiny_engine.generate_sync(prompt, greedy())
    stats = again.stats
    assert (stats.prompt_tokens, stats.generated_tokens) == (50, 12)
    assert first.cached_tokens == 0 and again.cached_tokens == stats.cached_tokens == 48
    assert 0 <= stats.time_to_first_token_ms <= stats.total_time_ms and stats.tokens_per_second > 0
    assert again.handle != first.handle


def test_the_same_seed_draws_the_same_and_no_seed_another_each_time(tiny_engine):
    def sample(seed):
        return tiny_engine.generate_sync(PROMPT, GenerationParams(max_tokens=12, seed=seed, ignore_eos=True)).tokens

    seeds = [0, 1, -1, 2**32, 2**63 - 1, -(2**63), 2**64 - 2, 12345]
    drawn = [sample(seed) for seed in seeds]
    assert [sample(seed) for seed in seeds] == drawn
    assert len({tuple(tokens) for tokens in drawn}) == len(seeds)
    assert sample(-1) == sample(2**64 - 1)  # one 64-bit pattern
    assert len({tuple(sample(None)) for _ in range(4)}) == 4
