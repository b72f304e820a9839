"""Tool calls and reasoning, from what a model writes to messages and chunks, and how tools reach the model."""

import json

import openai.types.chat as sdk
import pytest
from answer_script import CHATML, WEATHER
from stream_lint import lint_chat
from stub_engine import Script

from cvllm_jax.errors import ConfigError, TokenizationError
from cvllm_jax.grammar import (
    AfterText,
    GrammarError,
    JsonObjectGrammar,
    JsonSchemaGrammar,
    LarkGrammar,
    ToolCallGrammar,
)
from cvllm_jax.openai import (
    AdapterConfig,
    ChatCompletionRequest,
    FunctionDefinition,
    Message,
    OpenAIAdapter,
    RequestError,
    Tool,
    ToolChoice,
)
from cvllm_jax.params import FinishReason

PARAMETERS = {
    "type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"],
    "additionalProperties": False,
}  # fmt: skip
TOOLS = [
    Tool.function(FunctionDefinition("get_weather").with_description("Weather.").with_parameters(PARAMETERS)),
    Tool.function(FunctionDefinition("get_time")),
]
TWO = f"<think>\nHm.\n</think>\n\nI look.\n{WEATHER}\n{WEATHER.replace('Tokyo', 'Rome')}"


def request(**fields):
    fields = {"messages": [Message.user("the weather?")], "tools": TOOLS, **fields}
    return ChatCompletionRequest(model="m", **fields)


def ask(engine, **fields):
    """The only choice of the answer, which must be that of the stream too."""
    adapter = OpenAIAdapter(engine)
    answer = adapter.chat_completion_sync(request(**fields))
    sdk.ChatCompletion.model_validate(json.loads(answer.model_dump_json()), strict=True)
    chunks = [json.loads(chunk.model_dump_json()) for chunk in adapter.chat_completion_stream_sync(request(**fields))]
    for chunk in chunks:
        sdk.ChatCompletionChunk.model_validate(chunk, strict=True)
    events = [(None, json.dumps(chunk)) for chunk in chunks] + [(None, "[DONE]")]
    choice = answer.choices[0]
    if not isinstance(fields.get("tool_choice"), ToolChoice):  # a named function ends with "stop"
        assert lint_chat(events) == []
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == (choice.message.content or "")
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == (choice.message.reasoning_content or "")
    calls = {}
    for delta in deltas:
        for call in delta.get("tool_calls", ()):
            made = calls.setdefault(call["index"], [call["function"].get("name"), ""])
            made[1] += call["function"]["arguments"]
    assert list(calls.values()) == [list(call) for call in names_and_arguments(choice)]
    assert chunks[-1]["choices"][0]["finish_reason"] == choice.finish_reason
    return choice, answer.usage


def names_and_arguments(choice):
    return [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]


def test_calls_and_reasoning_are_split_off(make_stub):
    choice, usage = ask(make_stub(Script(TWO)))
    assert names_and_arguments(choice) == [
        ("get_weather", '{"location": "Tokyo"}'), ("get_weather", '{"location": "Rome"}'),
    ]  # fmt: skip
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert (choice.message.content, choice.message.reasoning_content) == ("I look.", "Hm.")
    assert choice.finish_reason == "tool_calls"
    assert usage.completion_tokens == len(TWO)
    assert len("<think>\nHm.") <= usage.completion_tokens_details.reasoning_tokens <= len("<think>\nHm.\n</think>\n\n")


def test_a_call_alone_has_no_content(make_stub):
    choice, usage = ask(make_stub(Script(WEATHER)))
    assert choice.message.content is None
    assert usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize("fields", [{"tool_choice": ToolChoice.mode("none")}, {"tools": None}])
def test_without_callable_tools_calls_are_text(make_stub, fields):
    choice, _ = ask(make_stub(Script(TWO)), **fields)
    assert choice.message.tool_calls is None
    assert choice.message.content.count("<tool_call>") == 2
    assert choice.finish_reason == "stop"


def test_one_call_at_most_where_asked(make_stub):
    choice, _ = ask(make_stub(Script(TWO)), parallel_tool_calls=False)
    assert names_and_arguments(choice) == [("get_weather", '{"location": "Tokyo"}')]


@pytest.mark.parametrize(
    ("reason", "choice", "name"),
    [
        (FinishReason.Length, None, "length"),
        (FinishReason.StopSequence("x"), None, "stop"),
        (FinishReason.Stop, ToolChoice.function("get_weather"), "stop"),
    ],
)
def test_other_ends_with_calls(make_stub, reason, choice, name):
    engine = make_stub(Script(WEATHER, finish_reason=reason))
    answer = OpenAIAdapter(engine).chat_completion_sync(request(tool_choice=choice))
    assert answer.choices[0].finish_reason == name
    assert names_and_arguments(answer.choices[0])


def test_reasoning_that_is_cut_is_reasoning(make_stub):
    choice, usage = ask(make_stub(Script("<think>\nSo long", finish_reason=FinishReason.Length)))
    assert (choice.message.content, choice.message.reasoning_content) == (None, "So long")
    assert usage.completion_tokens_details.reasoning_tokens == usage.completion_tokens


def test_log_probabilities_cover_markup_too(make_stub):
    answer = OpenAIAdapter(make_stub(Script(TWO))).chat_completion_sync(request(logprobs=True))
    assert bytes(byte for entry in answer.choices[0].logprobs.content for byte in entry.bytes) == TWO.encode()
    chunks = OpenAIAdapter(make_stub(Script(TWO))).chat_completion_stream_sync(request(logprobs=True))
    entries = [chunk.choices[0].logprobs.content for chunk in chunks if chunk.choices[0].logprobs]
    assert bytes(byte for content in entries for entry in content for byte in entry.bytes) == TWO.encode()


def test_markup_of_control_tokens_is_kept_for_the_parser_alone(make_stub):
    control = ("<tool_call>", "</tool_call>", "<|other|>")
    engine = make_stub(Script(f"{WEATHER}<|other|>"), control_tokens=control)
    choice, _ = ask(engine)
    assert names_and_arguments(choice) == [("get_weather", '{"location": "Tokyo"}')]
    assert engine.seen[-1][1].skip_special_tokens is False
    engine = make_stub(Script("hi"), control_tokens=("<|other|>",))
    ask(engine)
    assert engine.seen[-1][1].skip_special_tokens is True


def test_tools_and_turns_reach_the_template(make_stub):
    engine = make_stub(Script("It is sunny."))
    first = OpenAIAdapter(make_stub(Script(WEATHER))).chat_completion_sync(request()).choices[0].message
    messages = [
        Message.user("the weather?"),
        Message.assistant_with_tool_calls(first.tool_calls),
        Message.tool_with_name(first.tool_calls[0].id, "sunny", "get_weather"),
    ]
    strict = [Tool.function(TOOLS[0].function.with_strict())]
    OpenAIAdapter(engine).chat_completion_sync(request(messages=messages, tools=strict))
    prompt = bytes(engine.seen[0][0]).decode()
    assert '"description": "Weather."' in prompt
    assert "strict" not in prompt
    assert WEATHER in prompt
    assert "<tool_response>\nsunny\n</tool_response>" in prompt


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"items": value}
    return value


CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
ASSISTANT = {"role": "assistant", "content": None, "tool_calls": [CALL]}
REFUSED = [
    ({"tool_choice": ToolChoice.function("other")}, "tool_choice", "'other' not found in 'tools'"),
    ({"tool_choice": ToolChoice.allowed_tools(["other"])}, "tool_choice", "'other' not found in 'tools'"),
    ({"tools": None, "tool_choice": ToolChoice.mode("required")}, "tool_choice", "only allowed when 'tools'"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name", "must be unique"),
    (
        {"tools": [Tool.function(FunctionDefinition("f").with_parameters({"type": "array"}))]},
        "tools[0].function.parameters", "got 'type: 'array''",
    ),
    (
        {
            "tools": [TOOLS[0], Tool.function(FunctionDefinition("f").with_parameters({"contains": 1}))],
            "tool_choice": ToolChoice.mode("required"),
        },
        "tools[1].function.parameters", "Invalid schema for function 'f'",
    ),
    (
        {"tools": [Tool.function(FunctionDefinition("f").with_parameters(nested(90)))],
         "tool_choice": ToolChoice.mode("required")},
        "tools[0].function.parameters", "nested more than",
    ),
]  # fmt: skip

#: As OpenAI says it, "preceeding" included.
ORPHAN = "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."
UNANSWERED = (
    "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
    "The following tool_call_ids did not have response messages: "
)
USER, ANSWER = Message.user("x"), Message.tool("c1", "x")
TWICE = Message.assistant_with_tool_calls([CALL, {**CALL, "id": "c2"}])
TURNS_REFUSED = [
    ([USER, ANSWER], "messages.[1].role", ORPHAN),
    ([USER, ASSISTANT, ANSWER, USER, ANSWER], "messages.[4].role", ORPHAN),
    (
        [USER, ASSISTANT, Message.tool("c2", "x")], "messages.[2].tool_call_id",
        "Invalid parameter: 'tool_call_id' of 'c2' not found in 'tool_calls' of previous message.",
    ),
    ([USER, ASSISTANT], "messages", f"{UNANSWERED}c1"),
    ([USER, TWICE], "messages", f"{UNANSWERED}c1, c2"),
    ([USER, TWICE, ANSWER], "messages", f"{UNANSWERED}c2"),
    ([USER, TWICE, ANSWER, USER], "messages.[3].role", f"{UNANSWERED}c2"),
    ([USER, ASSISTANT, ASSISTANT, ANSWER], "messages.[2].role", f"{UNANSWERED}c1"),
    ([USER, ASSISTANT, USER, ANSWER], "messages.[2].role", f"{UNANSWERED}c1"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "param", "text"), TURNS_REFUSED)
def test_every_call_is_answered_before_anything_else(make_stub, messages, param, text):
    with pytest.raises(RequestError) as caught:
        OpenAIAdapter(make_stub(Script())).chat_completion_sync(request(messages=messages))
    assert (str(caught.value), caught.value.param, caught.value.code) == (text, param, None)


def test_calls_are_answered_in_any_order(make_stub):
    turn = [TWICE, Message.tool("c2", "y"), ANSWER]
    adapter = OpenAIAdapter(make_stub(Script()))
    assert adapter.chat_completion_sync(request(messages=[USER, *turn, Message.assistant("so"), USER, *turn])).choices


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED)
def test_what_does_not_fit_together_is_refused(make_stub, fields, param, words):
    with pytest.raises(RequestError) as caught:
        OpenAIAdapter(make_stub(Script())).chat_completion_sync(request(**fields))
    assert caught.value.param == param
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [Tool.function(FunctionDefinition("f").with_parameters(nested(1000)))]}, "tools"),
        ({"chat_template_kwargs": {"x": nested(1000)}}, "chat_template_kwargs"),
    ],
)
def test_deep_nesting_is_refused_by_name(make_stub, fields, param):
    with pytest.raises(TokenizationError, match="nested more than") as caught:
        OpenAIAdapter(make_stub(Script())).chat_completion_sync(request(**fields))
    assert caught.value.param == param


def test_a_template_without_tools_is_no_use(make_stub, stub):
    with pytest.raises(RequestError, match="cannot show tools") as caught:
        OpenAIAdapter(stub).chat_completion_sync(request())
    assert caught.value.param == "tools"
    unknown = "{% for tool in tools %}{{ tool }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    engine = make_stub(Script(WEATHER), template=unknown)
    with pytest.raises(RequestError, match="--tool-parser"):
        OpenAIAdapter(engine).chat_completion_sync(request())
    adapter = OpenAIAdapter.with_config(engine, AdapterConfig(tool_parser="hermes"))
    assert adapter.chat_completion_sync(request()).choices[0].message.tool_calls


def test_parsers_can_be_named(make_stub):
    engine = make_stub(Script(TWO))
    plain = OpenAIAdapter.with_config(engine, AdapterConfig(reasoning_parser="none"))
    message = plain.chat_completion_sync(request()).choices[0].message
    assert message.content.startswith("<think>")
    assert len(message.tool_calls) == 2
    with pytest.raises(RequestError, match="not known"):
        OpenAIAdapter.with_config(engine, AdapterConfig(tool_parser="none")).chat_completion_sync(request())
    for wrong in ({"tool_parser": "x"}, {"reasoning_parser": "x"}):
        with pytest.raises(ConfigError, match="parser 'x'"):
            AdapterConfig(**wrong)


def test_a_grammar_that_reaches_a_limit_is_the_requests_fault(make_stub):
    limit = GrammarError("the grammar cannot be followed further: too many items")
    adapter = OpenAIAdapter(make_stub(Script("{", finish_reason=FinishReason.Error(str(limit), limit))))
    schema = {"type": "json_schema", "json_schema": {"name": "big", "schema": {}}}
    for ask in (adapter.chat_completion_sync, lambda asked: list(adapter.chat_completion_stream_sync(asked))):
        with pytest.raises(RequestError, match="schema for response_format 'big': the grammar cannot") as caught:
            ask(request(tools=None, response_format=schema))
        assert (caught.value.param, caught.value.code) == ("response_format", "invalid_json_schema")


def test_the_template_is_that_of_the_scripted_model():
    assert "<tool_call>" in CHATML
    assert "</think>" in CHATML


#: The template of a model that always reasons.
BEGUN = CHATML.replace(r"assistant\n' -}}", r"assistant\n<think>\n' -}}")


def test_reasoning_that_the_prompt_begins(make_stub):
    assert BEGUN != CHATML
    engine = make_stub(Script(f"Hm.\n</think>\n\n{WEATHER}"), template=BEGUN)
    choice, _ = ask(engine)
    assert choice.message.reasoning_content == "Hm."
    assert names_and_arguments(choice)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}}
    for fields, inner in (
        ({"tools": None, "response_format": schema}, JsonSchemaGrammar(PARAMETERS)),
        ({"tools": None, "response_format": {"type": "json_object"}}, JsonObjectGrammar()),
        ({"tool_choice": ToolChoice.mode("required")}, None),
    ):
        OpenAIAdapter(engine).chat_completion_sync(request(**fields))
        grammar = engine.seen[-1][1].grammar
        assert isinstance(grammar, AfterText)
        assert grammar.marker == "</think>"
        assert grammar.grammar == inner or isinstance(grammar.grammar, ToolCallGrammar)
    with pytest.raises(RequestError, match="turn reasoning off"):
        OpenAIAdapter(engine).chat_completion_sync(request(tools=None, structured_outputs={"grammar": 'start: "a"'}))


def test_reasoning_can_be_turned_off(make_stub):
    template = "{{ '<|assistant|>' }}{{ '<think></think>' if enable_thinking is false }}"
    engine = make_stub(Script("{}"), template=template)
    fields = {"tools": None, "response_format": {"type": "json_object"}}
    OpenAIAdapter(engine).chat_completion_sync(request(reasoning_effort="none", **fields))
    OpenAIAdapter(engine).chat_completion_sync(request(**fields))
    assert [type(params.grammar) for _, params in engine.seen] == [JsonObjectGrammar, LarkGrammar]
