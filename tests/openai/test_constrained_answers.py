"""Answers that must have a form, by the real engine with a scripted model: what it says fits or is made to."""

import json

import jsonschema
import numpy as np
import pytest

from cvllm_jax.grammar import JsonSchemaGrammar, RegexGrammar
from cvllm_jax.openai import (
    AdapterConfig,
    ChatCompletionRequest,
    FunctionDefinition,
    Message,
    OpenAIAdapter,
    RequestError,
    Tool,
    ToolChoice,
    get_tool_parser,
)
from cvllm_jax.openai.answer_rules import Thinking, answer_grammar, harmony_grammar
from cvllm_jax.openai.call_rules import Calls

PLACE = {
    "type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"],
    "additionalProperties": False,
}  # fmt: skip
COUNT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
TOOLS = [
    Tool.function(FunctionDefinition("get_weather").with_parameters(PLACE)),
    Tool.function(FunctionDefinition("count").with_parameters(COUNT)),
]
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE, "strict": True}}
SCHEMAS = {"get_weather": PLACE, "count": COUNT}


@pytest.fixture(scope="module")
def adapter(scripted):
    return OpenAIAdapter(scripted)


def ask(adapter, text, **fields):
    fields = {"temperature": 0.0, "max_tokens": 400, **fields}
    request = ChatCompletionRequest(model="m", messages=[Message.user(text)], **fields)
    choice = adapter.chat_completion_sync(request).choices[0]
    assert choice.finish_reason != "length"
    for call in choice.message.tool_calls or ():
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    return choice


def called(choice):
    return [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]


@pytest.mark.parametrize("text", ["hi", "JSON", "thoughtful JSON", "sunny"])
def test_a_schema_is_kept(adapter, text):
    choice = ask(adapter, text, response_format=FORMAT)
    jsonschema.validate(json.loads(choice.message.content), PLACE)
    if "JSON" in text:
        assert choice.message.content == '{"location": "Paris"}'
    assert choice.message.reasoning_content == ("Where?" if "thoughtful" in text else None)
    assert isinstance(json.loads(ask(adapter, text, response_format={"type": "json_object"}).message.content), dict)


@pytest.mark.parametrize("text", ["hi", "weather", "weather in two"])
def test_required_calls_are_made(adapter, text):
    choice = ask(adapter, text, tools=TOOLS, tool_choice=ToolChoice.mode("required"))
    assert choice.finish_reason == "tool_calls"
    assert called(choice)
    if text == "weather in two":
        assert [json.loads(arguments)["location"] for _, arguments in called(choice)] == ["Tokyo", "Rome"]
        assert choice.message.reasoning_content == "Two."


def test_one_required_call(adapter):
    choice = ask(
        adapter, "weather in two", tools=TOOLS, tool_choice=ToolChoice.mode("required"), parallel_tool_calls=False
    )
    assert called(choice) == [("get_weather", '{"location": "Tokyo"}')]


@pytest.mark.parametrize("text", ["hi", "weather"])
def test_a_named_function_is_called(adapter, text):
    choice = ask(adapter, text, tools=TOOLS, tool_choice=ToolChoice.function("count"))
    assert [name for name, _ in called(choice)] == ["count"]
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize(
    ("parser", "text", "places"), [("pythonic", "pythonic", ["Tokyo", "Rome"]), ("qwen3_coder", "XML", ["Tokyo"])]
)
def test_calls_that_are_no_json(scripted, parser, text, places):
    adapter = OpenAIAdapter.with_config(scripted, AdapterConfig(tool_parser=parser))
    strict = [Tool.function(TOOLS[0].function.with_strict()), TOOLS[1]]
    for fields in ({"tool_choice": ToolChoice.mode("required")}, {}, {"response_format": FORMAT}):
        choice = ask(adapter, text, tools=strict, **fields)
        assert [json.loads(arguments)["location"] for _, arguments in called(choice)] == places
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    required = ask(adapter, "hi", tools=TOOLS, tool_choice=ToolChoice.function("count"))
    assert [name for name, _ in called(required)] == ["count"]
    assert ask(adapter, "hi", tools=strict).message.content == "Hello there."
    request = {"model": "m", "messages": [Message.user(text)], "tools": TOOLS, "temperature": 0.0, "max_tokens": 400}
    request |= {"tool_choice": ToolChoice.mode("required")}
    chunks = list(adapter.chat_completion_stream_sync(ChatCompletionRequest(**request)))
    deltas = [delta for chunk in chunks if chunk.choices for delta in chunk.choices[0].delta.tool_calls or ()]
    for index, place in enumerate(places):
        arguments = "".join(delta.function.arguments or "" for delta in deltas if delta.index == index)
        assert json.loads(arguments) == {"location": place}


def test_allowed_tools_alone_are_called(adapter):
    choice = ask(adapter, "weather", tools=TOOLS, tool_choice=ToolChoice.allowed_tools(["count"]))
    assert {name for name, _ in called(choice)} == {"count"}
    assert choice.message.content is None  # nothing of the call that the model meant is left
    assert ask(adapter, "hi", tools=TOOLS, tool_choice=ToolChoice.allowed_tools(["count"])).message.content


def test_strict_tools_leave_text_alone(adapter):
    strict = [Tool.function(TOOLS[0].function.with_strict())]
    assert ask(adapter, "hi", tools=strict).message.content == "Hello there."
    assert called(ask(adapter, "weather", tools=strict)) == [("get_weather", '{"location": "Tokyo"}')]


def test_a_format_goes_with_tools(adapter):
    assert called(ask(adapter, "weather", tools=TOOLS, response_format=FORMAT))
    choice = ask(adapter, "JSON", tools=TOOLS, response_format=FORMAT)
    assert (choice.message.content, choice.message.tool_calls) == ('{"location": "Paris"}', None)
    jsonschema.validate(json.loads(ask(adapter, "hi", tools=TOOLS, response_format=FORMAT).message.content), PLACE)


@pytest.mark.parametrize(
    ("outputs", "answers"),
    [
        ({"choice": ["yes (1)", "no"]}, {"yes (1)", "no"}),
        ({"regex": "(yes|no)!"}, {"yes!", "no!"}),
        ({"grammar": 'start: "yes" | "no"'}, {"yes", "no"}),
        ({"json": {"enum": ["yes", "no"]}}, {'"yes"', '"no"'}),
        ({"json": '{"const": 1}'}, {"1"}),
        ({"json_object": True}, {"{}"}),
    ],
)
def test_structured_outputs(adapter, outputs, answers):
    assert ask(adapter, "hi", structured_outputs=outputs).message.content in answers


def schema(value):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "mine", "schema": value}}}


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"items": value}
    return value


REFUSED = [
    (schema({"type": "text"}), "response_format", "schema for response_format 'mine': type"),
    (schema({"contains": {}}), "response_format", "contains"),
    (schema(nested(5000)), "response_format", "nested"),
    ({"structured_outputs": {"regex": "(("}}, "structured_outputs", "'(('"),
    ({"structured_outputs": {"regex": "(a{1000}){1000}"}}, "structured_outputs", "structured_outputs"),
    ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs", "nothing"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "not JSON"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly one"),
    (schema(PLACE) | {"structured_outputs": {"regex": "a"}}, "structured_outputs", "use one of them"),
    (schema(PLACE) | {"ignore_eos": True}, "ignore_eos", "grammar"),
    ({"tools": TOOLS, "structured_outputs": {"grammar": 'start: "a"'}}, "structured_outputs", "neither tools"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_enforced_is_refused_before_any_token(adapter, fields, param, words):
    request = ChatCompletionRequest(model="m", messages=[Message.user("hi")], **fields)
    for way in (adapter.chat_completion_sync, adapter.chat_completion_stream_sync):
        with pytest.raises(RequestError) as caught:
            way(request)
        assert caught.value.param == param
        assert words in str(caught.value)
        assert len(str(caught.value)) < 600


THINKING = Thinking(opening="<think>", closing="</think>", begun=False)
ARGUMENTS = '{"location": "Rome"}'
JSON_CALL = f'{{"name": "get_weather", "arguments": {ARGUMENTS}}}'
BEGIN, END = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
#: Parser and what decides the form in the chat template -> a call as the model writes it.
WRITTEN = {
    ("hermes", ""): f"<tool_call>\n{JSON_CALL}\n</tool_call>",
    ("llama3_json", ""): JSON_CALL.replace("arguments", "parameters"),
    ("mistral", ""): f"[TOOL_CALLS] [{JSON_CALL}]",
    ("mistral", "[ARGS]"): f"[TOOL_CALLS]get_weather[ARGS]{ARGUMENTS}",
    ("deepseek_v3", ""): f"{BEGIN}get_weather<｜tool▁sep｜>{ARGUMENTS}{END}",
    ("deepseek_v3", "```json"): f"{BEGIN}function<｜tool▁sep｜>get_weather\n```json\n{ARGUMENTS}\n```{END}",
    ("pythonic", ""): '[get_weather(location="Rome")]',
    ("pythonic", "<|python_start|>"): '<|python_start|>[get_weather(location="Rome")]<|python_end|>',
    ("qwen3_coder", ""): (
        "<tool_call>\n<function=get_weather>\n<parameter=location>\nRome\n</parameter>\n</function>\n</tool_call>"
    ),
    ("granite", ""): f"<|tool_call|>[{JSON_CALL}]",
    ("phi4_mini", ""): f"<|tool_call|>[{JSON_CALL}]<|/tool_call|>",
    ("phi4_mini", "functools"): f"functools[{JSON_CALL}]",
    ("gpt_oss", ""): f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{ARGUMENTS}",
}


def takes(engine, grammar, text):
    """Whether the grammar, compiled for a vocabulary of bytes, takes this text as a whole answer."""
    compiled = engine.compile_grammar(grammar)
    matcher = compiled.matcher()
    mask = np.zeros(-(-compiled.vocabulary_size // 32), np.uint32)
    for byte in text.encode():
        matcher.mask(mask)
        if not matcher.advance(byte):
            return False
    return matcher.accepts_end


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("form", WRITTEN, ids=" ".join)
def test_calls_are_written_as_they_are_read(scripted, form, required):
    name, template = form
    parser = get_tool_parser(name)
    calls = Calls(form=parser.call_form(template), tools=[("get_weather", PLACE)], required=required, parallel=True)
    in_channels = name == "gpt_oss"
    grammar = harmony_grammar(None, calls, {}) if in_channels else answer_grammar(None, calls, THINKING, {})
    text = WRITTEN[form]
    before = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant" if in_channels else "<think>Hm.</think>\n\n"
    plain = "<|channel|>final<|message|>Hi." if in_channels else "Hi."
    assert takes(scripted, grammar, text)
    assert takes(scripted, grammar, before + text)
    assert takes(scripted, grammar, plain) is not required
    assert not takes(scripted, grammar, text.replace("location", "place"))
    _, found = parser.parse(text, [tool.model_dump() for tool in TOOLS])
    assert [(call.name, call.arguments) for call in found] == [("get_weather", ARGUMENTS)]


@pytest.mark.parametrize("content", [JsonSchemaGrammar(PLACE), RegexGrammar(r"\{.*\}")])
def test_content_or_calls(scripted, content):
    form = get_tool_parser("hermes").call_form("")
    calls = Calls(form=form, tools=[("get_weather", PLACE)], required=False, parallel=True)
    call = WRITTEN["hermes", ""]
    begun = Thinking(opening="<think>", closing="</think>", begun=True)
    for thinking, before in ((None, ""), (THINKING, ""), (THINKING, "<think>x</think>"), (begun, "x</think>\n")):
        grammar = answer_grammar(content, calls, thinking, {})
        assert takes(scripted, grammar, before + ARGUMENTS)
        assert takes(scripted, grammar, before + call)
        assert takes(scripted, grammar, f"{before}{call}\n{call}")
        assert not takes(scripted, grammar, f"{before}text")
    harmony = harmony_grammar(content, None, {})
    assert takes(scripted, harmony, f"<|channel|>final<|message|>{ARGUMENTS}")
    assert not takes(scripted, harmony, "<|channel|>final<|message|>text")
