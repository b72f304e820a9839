"""Answers under a grammar: they match it whatever the model says, and nobody else notices."""

import json
import time

import jsonschema
import pytest

from cvllm_jax import FinishReason, GenerationError, GenerationParams, InferenceRequest, RequestUpdate
from cvllm_jax.grammar import GrammarError, JsonObjectGrammar, JsonSchemaGrammar, RegexGrammar

SCHEMA = {
    "type": "object",
    "properties": {
        "a_long_name_that_is_forced": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["north", "south"]},
        "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["a_long_name_that_is_forced", "kind", "list"],
    "additionalProperties": False,
}
KIND = {"type": "array", "items": {"enum": ["north", "south", 3]}, "minItems": 2, "maxItems": 4}
PROMPT = [5 + (n * n) % 250 for n in range(30)]


def prepared(engine):
    """The engine when it has compiled what it compiles at the first grammar, so that no later test sees it do so."""
    engine.compile_grammar(JsonSchemaGrammar(KIND))
    deadline = time.monotonic() + 300
    while not engine.runner.halves:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return engine


@pytest.fixture(autouse=True, params=["whole steps", "halves"])
def halves(request, tiny_engine, monkeypatch):
    """With and without the steps in two halves, which a grammar gets once they are compiled."""
    monkeypatch.setattr(prepared(tiny_engine).runner, "halves", request.param == "halves")


def params(grammar, **settings):
    return GenerationParams(**{"temperature": 1.0, "max_tokens": 220, "seed": 3, "grammar": grammar, **settings})


@pytest.mark.parametrize("seed", range(6))
def test_a_random_model_writes_what_validates(tiny_engine, seed):
    output = tiny_engine.generate_sync(PROMPT, params(JsonSchemaGrammar(SCHEMA), seed=seed))
    assert output.finish_reason is FinishReason.Stop
    jsonschema.validate(json.loads(output.text), SCHEMA)
    assert output.text == tiny_engine.detokenize(output.tokens)


def test_greedy_and_with_everything_that_changes_a_choice(tiny_engine):
    for settings in (
        {"temperature": 0.0}, {"repetition_penalty": 1.3, "frequency_penalty": 0.2}, {"logit_bias": {65: 20.0}},
        {"logprobs": True, "top_logprobs": 3}, {"top_k": 3}, {"top_p": 0.3},
    ):  # fmt: skip
        output = tiny_engine.generate_sync(PROMPT, params(JsonSchemaGrammar(SCHEMA), **settings))
        jsonschema.validate(json.loads(output.text), SCHEMA)
        if settings.get("logprobs"):
            assert len(output.logprobs) == len(output.tokens) == len(output.top_logprobs)


def test_forced_text_takes_one_step_and_not_one_a_token(tiny_engine):
    """The same text token by token where log probabilities are wanted."""
    grammar = RegexGrammar("the quick brown fox jumps over the lazy dog [0-9]{2}")
    before = tiny_engine.stats().steps
    quick = tiny_engine.generate_sync(PROMPT, params(grammar))
    between = tiny_engine.stats().steps
    slow = tiny_engine.generate_sync(PROMPT, params(grammar, logprobs=True))
    assert quick.text[:-2] == slow.text[:-2]
    assert between - before < 8 < 30 < len(slow.tokens) <= tiny_engine.stats().steps - between


def test_among_neighbours_that_are_free(make_engine, tiny_engine):
    """Mixed batches, preemption and chunked prompts: the free ones say what they say alone."""
    free = [GenerationParams(temperature=1.0, seed=n, max_tokens=25, ignore_eos=True) for n in range(4)]
    alone = [tiny_engine.generate_sync(PROMPT[: 5 + n], settings).tokens for n, settings in enumerate(free)]
    tight = prepared(make_engine(max_batch_size=64, kv_cache_memory=25 * 4096, max_sequence_length=128))
    for engine in (tiny_engine, tight):
        streams = []
        for n, settings in enumerate(free):
            streams.append(engine.generate_stream_sync(PROMPT[: 5 + n], settings))
            streams.append(
                engine.generate_stream_sync(PROMPT, params(JsonSchemaGrammar(KIND), seed=n, max_tokens=90))
            )
        outputs = [stream.finish() for stream in streams]
        assert [output.tokens for output in outputs[::2]] == alone
        for output in outputs[1::2]:
            assert output.finish_reason is FinishReason.Stop
            jsonschema.validate(json.loads(output.text), KIND)


def test_driven_by_step(tiny_engine):
    handle = tiny_engine.add_request(InferenceRequest(prompt=PROMPT, params=params(JsonSchemaGrammar(SCHEMA))))
    updates = []
    while not updates or isinstance(updates[-1], RequestUpdate.Token):
        updates += tiny_engine.step()
    assert updates[-1].handle == handle
    jsonschema.validate(json.loads(updates[-1].output.text), SCHEMA)


def test_an_answer_that_is_cut_says_so(tiny_engine):
    output = tiny_engine.generate_sync(PROMPT, params(JsonSchemaGrammar(SCHEMA), max_tokens=7))
    assert output.finish_reason is FinishReason.Length and len(output.tokens) == 7
    stopped = tiny_engine.generate_sync(PROMPT, params(RegexGrammar("a{50}"), stop_sequences=("aaaa",)))
    assert stopped.finish_reason == FinishReason.StopSequence("aaaa") and stopped.text == ""


@pytest.mark.parametrize(("grammar", "message"), [
    (RegexGrammar("("), "unmatched"), (JsonSchemaGrammar({"type": "strange"}), "strange"),
])  # fmt: skip
def test_what_cannot_be_compiled_is_refused_before_any_token(tiny_engine, grammar, message):
    with pytest.raises(GrammarError, match=message):
        tiny_engine.generate_sync(PROMPT, params(grammar))


@pytest.mark.parametrize("settings", [{}, {"logprobs": True}, {"repetition_penalty": 1.1}])
def test_an_answer_is_as_long_as_wanted_if_the_grammar_lets_it(tiny_engine, settings):
    eos = tiny_engine.model_info().eos_token_ids[0]
    settings |= {"logit_bias": {eos: 100.0}}
    free = RegexGrammar("[a-c]*")
    assert not tiny_engine.generate_sync(PROMPT, params(free, **settings)).tokens
    assert len(tiny_engine.generate_sync(PROMPT, params(free, min_tokens=9, **settings)).tokens) == 9
    output = tiny_engine.generate_sync(PROMPT, params(RegexGrammar("yes|no"), min_tokens=9, **settings))
    assert output.text in ("yes", "no") and output.finish_reason is FinishReason.Stop
    stop = tiny_engine.tokenize("a")
    settings["logit_bias"] = {stop[0]: 100.0}
    output = tiny_engine.generate_sync(PROMPT, params(free, min_tokens=9, stop_token_ids=stop, **settings))
    assert len(output.tokens) == 9 and "a" not in output.text


def test_what_cannot_go_with_a_grammar(tiny_engine):
    with pytest.raises(GenerationError, match="cannot go with a grammar") as caught:
        tiny_engine.generate_sync(PROMPT, params(JsonObjectGrammar(), ignore_eos=True))
    assert caught.value.param == "ignore_eos"


def test_the_steps_of_a_gpu_obey_a_grammar_too(gpu_steps_engine):
    prepared(gpu_steps_engine)
    for temperature in (0.0, 1.0):
        output = gpu_steps_engine.generate_sync(PROMPT, params(JsonSchemaGrammar(SCHEMA), temperature=temperature))
        jsonschema.validate(json.loads(output.text), SCHEMA)
