"""Requests are strict and say what is wrong as OpenAI does; answers validate as OpenAI's own types."""

import json
import logging
import math

import openai.types.chat as sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvllm_jax.openai import ChatCompletionRequest, Message, OpenAIAdapter, RequestError

USER = [{"role": "user", "content": "x"}]

# what is added to a good request -> param, code, words of the message
REFUSED = [
    ({"model": 1}, "model", "invalid_type", "expected a string, but got an integer"),
    ({"messages": []}, "messages", "empty_array", "minimum length 1"),
    ({"messages": {}}, "messages", "invalid_type", "expected an array, but got an object"),
    ({"messages": ["x"]}, "messages[0]", "invalid_type", "expected an object"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter", "Missing"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role", "invalid_value", "'assistant'"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type", "a string or an array"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "empty_array", "empty"),
    (
        {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
        "messages[0].content[0].type", "missing_required_parameter", "Missing",
    ),
    ({"temperature": "0.5"}, "temperature", "invalid_type", "expected a decimal, but got a string"),
    ({"temperature": -1}, "temperature", "decimal_below_min_value", ">= 0, but got -1"),
    ({"temperature": 2.5}, "temperature", "decimal_above_max_value", "<= 2, but got 2.5"),
    ({"temperature": math.nan}, "temperature", "invalid_value", "finite number, but got nan"),
    ({"temperature": math.inf}, "temperature", "invalid_value", "got inf"),
    ({"temperature": True}, "temperature", "invalid_type", "a boolean"),
    ({"top_p": 1.1}, "top_p", "decimal_above_max_value", "<= 1"),
    ({"top_k": -2}, "top_k", "integer_below_min_value", ">= -1"),
    ({"min_p": -0.1}, "min_p", "decimal_below_min_value", ">= 0"),
    ({"presence_penalty": 3}, "presence_penalty", "decimal_above_max_value", "<= 2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "decimal_below_min_value", "> 0"),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value", ">= 1"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type", "expected an integer, but got a decimal"),
    ({"n": 0}, "n", "integer_below_min_value", ">= 1"),
    ({"n": 129}, "n", "integer_above_max_value", "<= 128"),
    ({"seed": 2**64}, "seed", "integer_above_max_value", "18446744073709551615"),
    ({"stop": ["a"] * 5}, "stop", "array_above_max_length", "maximum length 4, but got an array with length 5"),
    ({"stop": []}, "stop", "empty_array", "empty"),
    ({"stop": ["a", ""]}, "stop[1]", "empty_string", "empty"),
    ({"stop": {}}, "stop", "invalid_type", "a string or an array"),
    ({"logit_bias": {"5": 200}}, "logit_bias.5", "decimal_above_max_value", "<= 100"),
    ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value", "<= 20"),
    ({"stream": "yes"}, "stream", "invalid_type", "a boolean"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type", "a boolean"),
]  # fmt: skip


@pytest.mark.parametrize(("extra", "param", "code", "words"), REFUSED)
def test_wrong_fields_are_named(extra, param, code, words):
    with pytest.raises(RequestError) as caught:
        ChatCompletionRequest.parse({"model": "m", "messages": USER, **extra})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_missing_field_is_named(field):
    body = {"model": "m", "messages": USER}
    del body[field]
    with pytest.raises(RequestError, match=f"Missing required parameter: '{field}'") as caught:
        ChatCompletionRequest.parse(body)
    assert caught.value.param == field


@pytest.mark.parametrize("body", [[], "x", 1, None])
def test_the_request_is_an_object(body):
    with pytest.raises(RequestError, match="must be a JSON object"):
        ChatCompletionRequest.parse(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from([*ChatCompletionRequest.model_fields, "unknown"]),
    json_values,
)
def test_any_value_of_any_field_is_taken_or_refused_by_name(field, value):
    try:
        ChatCompletionRequest.parse({"model": "m", "messages": USER, field: value})
        refused = field
    except RequestError as error:
        refused = error.param or ""
    assert refused.startswith(field)


def test_null_means_left_out():
    nulls = dict.fromkeys(set(ChatCompletionRequest.model_fields) - {"model", "messages"})
    assert ChatCompletionRequest.parse({"model": "m", "messages": USER, **nulls}).temperature is None


def test_messages_are_made_by_role():
    made = [Message.user("a"), Message.system("b"), Message.developer("c"), Message.assistant("d")]
    assert [(message.role, message.content) for message in made] == [
        ("user", "a"), ("system", "b"), ("developer", "c"), ("assistant", "d"),
    ]  # fmt: skip


def test_unknown_names_are_logged_once(stub, caplog):
    adapter = OpenAIAdapter(stub)
    request = ChatCompletionRequest.parse({"model": "m", "messages": USER, "brand_new_field": 1})
    with caplog.at_level(logging.WARNING):
        adapter.chat_completion_sync(request)
        adapter.chat_completion_sync(request)
    assert [record.getMessage() for record in caplog.records].count(
        "ignoring the unknown request field 'brand_new_field'"
    ) == 1


@pytest.mark.parametrize("logprobs", [False, True])
def test_answers_validate_as_the_sdks_types(stub, logprobs):
    request = ChatCompletionRequest(
        model="m", messages=[Message.user("x")], n=2, logprobs=logprobs, top_logprobs=2 if logprobs else None
    )
    answer = json.loads(OpenAIAdapter(stub).chat_completion_sync(request).model_dump_json())
    parsed = sdk.ChatCompletion.model_validate(answer, strict=True)
    assert [choice.message.content for choice in parsed.choices] == ["Hello, wörld 👋."] * 2
    assert set(answer["choices"][0]) == {"index", "message", "logprobs", "finish_reason"}
    assert answer["choices"][0]["message"] == {
        "role": "assistant", "content": "Hello, wörld 👋.", "refusal": None,
    }  # fmt: skip
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 16
