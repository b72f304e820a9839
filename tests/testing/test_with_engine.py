"""The script is said to the letter whatever happens around a request."""

import pytest
from scripted import COUNTED, LONG, REASONED, RULES, WEATHER_CALL, user

from cvllm_jax import ConfigError, EngineConfig, FinishReason, GenerationParams, InferenceEngine
from cvllm_jax.testing.script import DEFAULT_ANSWER

ALL = {"Weather?": WEATHER_CALL, '{"celsius": 21}': REASONED, "say nothing": "", "?": DEFAULT_ANSWER, **COUNTED}

#: 2 (k and v) * 16 tokens * 64 floats * 4 bytes.
PAGE_BYTES = 2 * 16 * 64 * 4


def ask(engine, text, **params):
    return engine.generate_sync(engine.chat_template.encode(user(text)), GenerationParams(**params))


def assert_says_all(engine, questions=ALL, **params):
    """All at once."""
    params = GenerationParams(**{"max_tokens": None, **params})
    streams = [engine.generate_stream_sync(engine.chat_template.encode(user(text)), params) for text in questions]
    for stream, say in zip(streams, questions.values(), strict=True):
        output = stream.finish()
        assert (output.text, output.finish_reason) == (say, FinishReason.Stop)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_many_lines_in_one_batch(make_scripted, temperature):
    assert_says_all(make_scripted(), temperature=temperature)


@pytest.mark.parametrize("settings", [{"prefill_chunk_size": 16}, {"enable_chunked_prefill": False}])
def test_however_prompts_are_chunked(make_scripted, settings):
    long = {f"{'x' * length} weather": WEATHER_CALL for length in range(30, 300, 37)}
    assert_says_all(make_scripted(**settings), long | ALL)


def test_after_a_prefix_hit(make_scripted):
    engine = make_scripted()
    text = "so long a question that its pages are shared " * 5
    answers = [ask(engine, text + tail, max_tokens=None) for tail in ("?", "weather", "?", "weather")]
    assert [answer.text for answer in answers] == [DEFAULT_ANSWER, WEATHER_CALL] * 2
    assert all(answer.cached_tokens >= 200 for answer in answers[1:])


def test_after_preemption(make_scripted):
    engine = make_scripted(max_batch_size=4, kv_cache_memory=13 * PAGE_BYTES, max_sequence_length=192)
    before = engine.stats().preemptions
    assert_says_all(engine, {f"line {number}": COUNTED[f"line {number}"] for number in range(16)} | ALL)
    assert_says_all(engine, {f"{i} weather": WEATHER_CALL for i in range(16)}, temperature=1.0)
    assert engine.stats().preemptions > before


def test_the_last_of_several_lines_in_a_prompt_counts(make_scripted):
    """A conversation that goes on in tokens still has the names of the lines that were said."""
    engine = make_scripted()
    history = engine.chat_template.encode(user("Weather?"))
    history += engine.generate_sync(history, GenerationParams()).tokens
    for text, say in (("line 9", COUNTED["line 9"]), ("?", DEFAULT_ANSWER)):
        history += engine.chat_template.encode(user(text))
        output = engine.generate_sync(history, GenerationParams())
        assert output.text == say
        history += output.tokens


def test_four_thousand_tokens(make_scripted):
    output = ask(make_scripted(), "count to a thousand", max_tokens=None)
    assert output.text == LONG
    assert len(output.tokens) == len(LONG.encode()) > 3900


def test_cuts_stops_and_min_tokens(make_scripted):
    engine = make_scripted()
    cut = ask(engine, "count to a thousand", max_tokens=10)
    assert (cut.text, cut.finish_reason) == (LONG[:10], FinishReason.Length)
    stopped = ask(engine, "count to a thousand", max_tokens=None, stop_sequences=("12 ",))
    assert stopped.text == LONG[: LONG.index("12 ")]
    longer = ask(engine, "line 3", max_tokens=40, min_tokens=20, temperature=0.0)
    assert longer.text.startswith("3: ddd")
    assert len(longer.tokens) >= 20


def test_penalties_within_reason_and_bias(make_scripted):
    engine = make_scripted()
    penalised = ask(engine, "Weather?", repetition_penalty=1.5, presence_penalty=2.0, temperature=1.0)
    assert penalised.text == WEATHER_CALL
    assert "3" not in ask(engine, "line 3", logit_bias={ord("3"): -100.0}).text


def test_a_prompt_without_a_line_goes_on_with_the_alphabet(make_scripted):
    output = make_scripted().generate_sync("abc", GenerationParams(max_tokens=30))
    assert output.text == "defghijklmnopqrstuvwxyzabcdefg"
    assert output.finish_reason is FinishReason.Length


@pytest.mark.slow  # the same model in the same types of cache is in test_model.py
def test_a_cache_of_eight_bits(make_scripted):
    engine = make_scripted(warmup=False, dtype="bf16", kv_cache_dtype="fp8")
    for text, say in list(ALL.items())[:3]:
        assert ask(engine, text, max_tokens=None).text == say


def test_what_the_engine_tells_of_the_model(make_scripted, script_path):
    info = make_scripted().model_info()
    assert (info.name, info.architecture) == (script_path.stem, "ScriptedForCausalLM")
    assert (info.context_length, info.max_sequence_length) == (32768, 8192)
    assert [make_scripted().tokenizer.control_tokens[token] for token in info.eos_token_ids] == ["<|im_end|>"]
    assert len(RULES) < info.vocab_size


@pytest.mark.parametrize("settings", [{"load_format": "dummy"}, {"revision": "main"}])
def test_settings_of_other_models_are_refused(script_path, settings):
    with pytest.raises(ConfigError, match="a scripted model takes neither"):
        InferenceEngine(EngineConfig(model_path=f"scripted:{script_path}", device="cpu", **settings))
