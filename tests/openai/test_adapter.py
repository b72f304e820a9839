"""From a request to prompt tokens and generation parameters, and back to an answer."""

import asyncio
import time

import pytest
from stub_engine import Script, StubEngine

from cvllm_jax.errors import ConfigError, QueueFullError, TokenizationError
from cvllm_jax.openai import (
    AdapterConfig,
    ChatCompletionRequest,
    GenerationFailedError,
    Message,
    OpenAIAdapter,
    RequestError,
    model_sampling_defaults,
)
from cvllm_jax.params import FinishReason


def request(*messages, **fields):
    return ChatCompletionRequest.parse({"model": "any", "messages": list(messages) or [Message.user("hi")], **fields})


def params_of(stub, **fields):
    OpenAIAdapter(stub).chat_completion_sync(request(**fields))
    return stub.seen[-1][1]


def test_the_answer_has_the_text_and_the_counts(stub):
    answer = asyncio.run(OpenAIAdapter(stub).chat_completion(request()))
    assert answer.model == "any"
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.content == "Hello, wörld 👋."
    assert answer.choices[0].finish_reason == "stop"
    prompt, _ = stub.seen[-1]
    assert bytes(prompt) == b"user: hi\nassistant: "
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len("Hello, wörld 👋.".encode())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_fields_reach_the_engine_by_its_names(stub):
    params = params_of(
        stub, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.1, frequency_penalty=0.2,
        presence_penalty=-0.2, seed=-7, stop=["x", "y"], stop_token_ids=[3], logit_bias={"5": -100},
        max_completion_tokens=3, min_tokens=2, ignore_eos=True, logprobs=True, top_logprobs=4,
    )  # fmt: skip
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 5, 0.1)
    assert (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) == (1.1, 0.2, -0.2)
    assert (params.seed, params.stop_sequences, params.stop_token_ids) == (-7, ("x", "y"), (3,))
    assert (params.logit_bias, params.max_tokens, params.min_tokens) == ({5: -100.0}, 3, 2)
    assert (params.ignore_eos, params.logprobs, params.top_logprobs) == (True, True, 4)


def test_without_fields_the_api_defaults_hold_and_no_limit(stub):
    params = params_of(stub)
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (1.0, 1.0, None, None)


@pytest.mark.parametrize("off", [-1, 0])
def test_top_k_can_be_turned_off(stub, off):
    assert params_of(stub, top_k=off).top_k is None


def test_the_models_own_defaults_fill_in():
    stub = StubEngine(generation_defaults={"temperature": 0.2, "top_k": 0, "max_new_tokens": 5})
    assert model_sampling_defaults(stub) == {"temperature": 0.2}
    adapter = OpenAIAdapter(stub)
    adapter.chat_completion_sync(request())
    adapter.chat_completion_sync(request(temperature=0.7))
    OpenAIAdapter.with_config(stub, AdapterConfig(sampling_defaults={})).chat_completion_sync(request())
    OpenAIAdapter.with_config(stub, AdapterConfig(sampling_defaults={"top_p": 0.5})).chat_completion_sync(request())
    assert [(params.temperature, params.top_p) for _, params in stub.seen] == [(0.2, 1), (0.7, 1), (1, 1), (1, 0.5)]
    assert stub.seen[0][1].top_k is None


@pytest.mark.parametrize("defaults", [{"max_tokens": 5}, {"top_p": 7}])
def test_defaults_are_checked_at_once(defaults):
    with pytest.raises(ConfigError):
        AdapterConfig(sampling_defaults=defaults)


def test_several_choices_draw_from_seeds_of_their_own(stub):
    answer = OpenAIAdapter(stub).chat_completion_sync(request(n=3, seed=5))
    seeds = [params.seed for _, params in stub.seen]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == len(stub.seen[0][0])
    assert answer.usage.completion_tokens == 3 * len(stub.script.text.encode())
    OpenAIAdapter(stub).chat_completion_sync(request(n=3, seed=5))
    assert [params.seed for _, params in stub.seen[3:]] == seeds


def test_logprobs_carry_the_exact_bytes(stub):
    answer = OpenAIAdapter(stub).chat_completion_sync(request(logprobs=True, top_logprobs=2))
    content = answer.choices[0].logprobs.content
    assert bytes(byte for entry in content for byte in entry.bytes) == stub.script.text.encode()
    assert content[0].token == "H"
    assert content[8].bytes == [0xC3]  # the first half of ö
    assert content[8].token == "\ufffd"
    assert [top.logprob for top in content[0].top_logprobs] == [-0.5, -1.5]


@pytest.mark.parametrize(
    ("reason", "name"),
    [(FinishReason.Stop, "stop"), (FinishReason.StopSequence("."), "stop"), (FinishReason.Length, "length")],
)
def test_finish_reasons(reason, name):
    stub = StubEngine(Script(finish_reason=reason))
    assert OpenAIAdapter(stub).chat_completion_sync(request()).choices[0].finish_reason == name


def test_a_failed_generation_is_an_error_of_its_own():
    stub = StubEngine(Script(finish_reason=FinishReason.Error("the device caught fire")))
    with pytest.raises(GenerationFailedError, match="caught fire"):
        OpenAIAdapter(stub).chat_completion_sync(request())


def test_content_parts_are_joined_and_developers_are_systems(stub):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    OpenAIAdapter(stub).chat_completion_sync(request(Message.developer("be brief"), {"role": "user", "content": parts}))
    assert bytes(stub.seen[0][0]) == b"system: be brief\nuser: one\ntwo\nassistant: "


def test_earlier_tool_turns_reach_the_template(stub):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    OpenAIAdapter(stub).chat_completion_sync(
        request(
            Message.user("hi"),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "4"},
        )
    )
    messages, _ = stub.chat_template.calls[0]
    assert messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert messages[2] == {"role": "tool", "content": "4", "tool_call_id": "c1"}


def test_template_variables_pass_through(stub):
    OpenAIAdapter(stub).chat_completion_sync(
        request(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low")
    )
    _, variables = stub.chat_template.calls[0]
    assert variables == {"enable_thinking": False, "reasoning_effort": "low"}


REFUSED = [
    ({"messages": [{"role": "user"}]}, "messages[0].content", "Missing"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content", "Missing"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "Missing"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        "messages[0].content[0].type", "text only",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text", "Missing",
    ),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"top_logprobs": 2}, "top_logprobs", "only allowed when 'logprobs'"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "at the same time is not supported"),
    ({"min_tokens": 9, "max_tokens": 5}, "min_tokens", "more than max_tokens"),
    ({"stop": ""}, "stop", "empty"),
    ({"logit_bias": {"five": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"256": 1}}, "logit_bias", "Invalid key in 'logit_bias': 256. Maximum value is 255."),
    ({"max_tokens": 500}, "max_tokens", "520 were requested: 20 in the messages and 500 for the answer; at most 492"),
    ({"max_completion_tokens": 500}, "max_completion_tokens", "maximum context length is 512"),
    ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages", "512 tokens, but the messages have 618"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "cannot set 'messages'"),
    ({"functions": [{"name": "f"}]}, "functions", "not supported except as []; use 'tools' instead"),
    ({"function_call": {"name": "f"}}, "function_call", "use 'tool_choice' instead"),
    ({"guided_json": {}}, "guided_json", "use 'structured_outputs' instead"),
    ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
    ({"audio": {"voice": "alloy"}}, "audio", "not supported"),
    ({"prediction": {"type": "content"}}, "prediction", "not supported"),
    ({"web_search_options": {}}, "web_search_options", "not supported"),
    ({"best_of": 2}, "best_of", "not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED)
def test_what_cannot_be_served_is_refused_by_name(stub, fields, param, words):
    with pytest.raises(RequestError) as caught:
        OpenAIAdapter(stub).chat_completion_sync(request(**fields))
    assert caught.value.param == param
    assert words in str(caught.value)
    with pytest.raises(RequestError):
        asyncio.run(OpenAIAdapter(stub).chat_completion(request(**fields)))
    with pytest.raises(RequestError):
        OpenAIAdapter(stub).chat_completion_stream_sync(request(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "none"},
        {"tool_choice": "auto", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}, "modalities": ["text"], "best_of": 1, "echo": False},
        {"store": True, "metadata": {"a": "b"}, "user": "u", "service_tier": "auto", "safety_identifier": "s"},
    ],
)
def test_neutral_values_are_taken(stub, fields):
    assert OpenAIAdapter(stub).chat_completion_sync(request(**fields)).choices


def test_a_template_that_raises_is_a_tokenization_error(stub):
    with pytest.raises(TokenizationError, match="no such conversation") as caught:
        OpenAIAdapter(stub).chat_completion_sync(request(Message.user("raise!")))
    assert caught.value.param == "messages"


def test_a_model_without_template_cannot_chat(stub):
    stub.chat_template = None
    with pytest.raises(RequestError, match="no chat template"):
        OpenAIAdapter(stub).chat_completion_sync(request())


def test_a_full_queue_is_told_apart():
    stub = StubEngine(max_queue_size=2)
    adapter = OpenAIAdapter(stub)
    stub.script.delay = 0.01
    with pytest.raises(QueueFullError):
        asyncio.run(adapter.chat_completion(request(n=3)))
    wait_until_idle(stub)


def test_cancelling_the_task_frees_the_request():
    stub = StubEngine(Script(forever=True, delay=0.005))
    adapter = OpenAIAdapter(stub)

    async def scenario():
        task = asyncio.create_task(adapter.chat_completion(request(n=2)))
        await asyncio.sleep(0.1)
        assert stub.stats().running == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    wait_until_idle(stub)


def test_closing_the_adapter_closes_the_engine(stub):
    with OpenAIAdapter(stub) as adapter:
        assert adapter.engine is stub
    assert stub.closed


def wait_until_idle(stub):
    deadline = time.monotonic() + 2
    while stub.stats().running:
        assert time.monotonic() < deadline
        time.sleep(0.005)
