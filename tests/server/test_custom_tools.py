"""Custom tools of the Responses API over real sockets: inputs that the scripted model writes and must follow."""

import json
import re

import openai
import pytest
from conftest import wait_until_idle
from live_server import live_server
from openai.types.responses import ResponseCustomToolCall
from patch_grammar import PATCH_GRAMMAR
from responses_api import ResponsesApi, call, kinds, output_types, text_of

from server.settings import ServerSettings

#: The grammar of patches as a pattern, to judge by.
LINES = r"(?:(?:@@(?: .+)?|[+\- ].*)\n)"
HUNK = (
    r"(?:\*{3} Add File: .+\n(?:\+.*\n)+|\*{3} Delete File: .+\n"
    rf"|\*{{3}} Update File: .+\n(?:\*{{3}} Move to: .+\n)?(?:{LINES}+(?:\*{{3}} End of File\n)?)?)"
)
A_PATCH = re.compile(rf"\*{{3}} Begin Patch\n{HUNK}+\*{{3}} End Patch\n?")
PATCH = """*** Begin Patch
*** Update File: src/greet.py
@@ def greet():
-    print("hi")
+    print("hi\\t\\"you\\"", 'é', r"\\d")

 \t
*** Add File: docs/a.md
+<b>bold</b>
+
*** End Patch
""".replace("\n\n", "\n+\n")
DATE = r"^(?P<month>January|February|March) \d{1,2}(?:st|nd|rd|th)? \d{4}$"
A_DATE = re.compile(r"(?:January|February|March) \d{1,2}(?:st|nd|rd|th)? \d{4}")

TAGS = "<tool_call>\n<function=apply_patch>\n<parameter=input>\n{}\n</parameter>\n</function>\n</tool_call>"
RULES = [
    {"when": "patch in tags", "say": TAGS.format(PATCH)},
    {"when": "no patch in tags", "say": TAGS.format("rm -rf /")},
    {"when": "patch in Python", "say": f"[apply_patch(input={json.dumps(PATCH, ensure_ascii=False)})]"},
    {"when": "well-made patch", "say": call("apply_patch", input=PATCH)},
    {"when": "careless patch", "say": call("apply_patch", input=PATCH.replace("*** Begin", "*** begin"))},
    {"when": "patch, thoughtfully", "say": f"<think>\nHm.\n</think>\n\n{call('apply_patch', input=PATCH)}"},
    {"when": "two patches", "say": "\n".join([call("apply_patch", input=PATCH)] * 2)},
    {"when": "what day", "say": call("timestamp", input="March 3rd 2026")},
    {"when": "some day", "say": call("timestamp", input="one of these days")},
    {"when": "say it freely", "say": call("note", input='anything "at all"\n')},
    {"when": "weather", "say": call("get_weather", location="Paris")},
    {"when": "Done", "say": "It is patched."},
    {"when": "", "say": "Hello there."},
]


def custom(name, syntax=None, definition=None, **fields):
    shape = {"type": "grammar", "syntax": syntax, "definition": definition} if syntax else {"type": "text"}
    return {"type": "custom", "name": name, "description": f"Tool {name}.", "format": shape, **fields}


PATCH_TOOL = custom("apply_patch", "lark", PATCH_GRAMMAR)
DATE_TOOL = custom("timestamp", "regex", DATE)
NOTE_TOOL = custom("note")


@pytest.fixture(scope="module")
def engine(make_engine, tmp_path_factory):
    path = tmp_path_factory.mktemp("custom") / "script.json"
    path.write_text(json.dumps(RULES), encoding="utf-8")
    return make_engine(model_path=f"scripted:{path}", max_sequence_length=8192)


@pytest.fixture(scope="module")
def apis(engine):
    """Servers by the format of calls that they expect."""
    with (
        live_server(engine) as hermes,
        live_server(engine, ServerSettings(tool_parser="qwen3_coder")) as tags,
        live_server(engine, ServerSettings(tool_parser="pythonic")) as python,
    ):
        servers = {"hermes": hermes, "qwen3_coder": tags, "pythonic": python}
        yield {parser: ResponsesApi(server.url) for parser, server in servers.items()}


@pytest.fixture
def api(apis, engine):
    yield apis["hermes"]
    wait_until_idle(engine)


def inputs(response):
    """What the custom tools of a response were given."""
    assert set(output_types(response)) <= {"reasoning", "custom_tool_call"}
    calls = [item for item in response["output"] if item["type"] == "custom_tool_call"]
    for item in calls:
        ResponseCustomToolCall.model_validate(item, strict=True)
    return [item["input"] for item in calls]


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "custom", "name": "apply_patch"}], ids=str)
def test_a_patch_is_taken_as_it_is_written(api, choice):
    tools = [PATCH_TOOL, DATE_TOOL, NOTE_TOOL]
    assert A_PATCH.fullmatch(PATCH)
    assert inputs(api.create("a well-made patch", tools=tools, tool_choice=choice)) == [PATCH]
    events = api.stream("a patch, thoughtfully", tools=tools, tool_choice=choice)
    assert inputs(events[-1]["response"]) == [PATCH]
    deltas = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
    assert len(deltas) > 10
    assert "".join(deltas) == PATCH
    assert kinds(events)[-3:] == ["custom_tool_call_input.done", "output_item.done", "completed"]


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "custom", "name": "apply_patch"}], ids=str)
def test_a_patch_is_made_to_follow_the_grammar(api, choice):
    assert inputs(api.create("a careless patch", tools=[PATCH_TOOL], tool_choice=choice)) == [PATCH]


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_regular_expression_is_followed(api, choice):
    tools = [DATE_TOOL, NOTE_TOOL]
    assert inputs(api.create("what day", tools=tools, tool_choice=choice)) == ["March 3rd 2026"]
    (date,) = inputs(api.create("some day", tools=tools, tool_choice=choice, parallel_tool_calls=False))
    assert A_DATE.fullmatch(date)


def test_whatever_the_model_says_a_required_tool_is_called(api):
    (date,) = inputs(api.create("hi", tools=[DATE_TOOL], tool_choice={"type": "custom", "name": "timestamp"}))
    assert A_DATE.fullmatch(date)


def test_text_is_free_beside_grammars(api):
    tools = [PATCH_TOOL, NOTE_TOOL]
    assert inputs(api.create("say it freely", tools=tools)) == ['anything "at all"\n']
    assert text_of(api.create("hi", tools=tools)) == "Hello there."
    assert len(inputs(api.create("two patches", tools=tools))) == 2


def test_an_agent_goes_on_after_its_patch(api):
    tools = [PATCH_TOOL]
    first = api.create("a well-made patch", tools=tools)
    output = {"type": "custom_tool_call_output", "call_id": first["output"][0]["call_id"], "output": "Done"}
    second = api.create([output], previous_response_id=first["id"], tools=tools)
    assert text_of(second) == "It is patched."


def test_the_sdk_streams_inputs(api):
    with api.sdk() as client, client.responses.stream(
        model=api.model, input="what day", tools=[DATE_TOOL], tool_choice="required"
    ) as stream:
        response = stream.get_final_response()
    assert [item.input for item in response.output] == ["March 3rd 2026"]


@pytest.mark.parametrize(
    ("parser", "said", "input_"),
    [
        ("qwen3_coder", "patch in tags", PATCH),
        ("qwen3_coder", "no patch in tags", None),
        ("pythonic", "patch in Python", PATCH),
    ],
)
def test_other_formats_of_calls(apis, engine, parser, said, input_):
    api = apis[parser]
    for choice in ("auto", "required"):
        (patch,) = inputs(
            api.create(said, tools=[PATCH_TOOL, NOTE_TOOL], tool_choice=choice, parallel_tool_calls=False)
        )
        assert A_PATCH.fullmatch(patch)
        assert input_ in (None, patch)
    wait_until_idle(engine)


@pytest.mark.parametrize(
    ("syntax", "definition", "reason"),
    [
        ("lark", "start: missing", "cannot be compiled"),
        ("lark", 'start: <|im_end|> "a"', "control token"),
        ("lark", 'start: %json {"type": "object"}', "directive"),
        ("lark", 'start: ("a"', "cannot be compiled"),
        ("lark", 'start: a\na[max_tokens=3]: /b+/', "max_tokens"),
        ("regex", "(unclosed", r"unmatched '\('"),
        ("regex", "a(?=b)", "lookaround"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_grammars_that_cannot_be_followed_are_refused(api, syntax, definition, reason, stream):
    tools = [custom("bad_tool", syntax, definition)]
    error = api.refused(input="hi", tools=tools, stream=stream)
    assert re.search(reason, error["message"])
    assert "'bad_tool'" in error["message"]
    assert error["param"] == "tools"
    assert len(error["message"]) < 500


def test_tools_that_may_not_be_called_are_shown_all_the_same(api):
    """So turns that allow other tools begin with the same tokens, which the prefix cache has."""
    tools = [PATCH_TOOL, DATE_TOOL, NOTE_TOOL]
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "timestamp"}]}
    plain = api.create("hi", tools=tools)["usage"]
    limited = api.create("hi", tools=tools, tool_choice=allowed)["usage"]
    assert limited["input_tokens"] == plain["input_tokens"]
    assert limited["input_tokens_details"]["cached_tokens"] > 0
    (date,) = inputs(api.create("a well-made patch", tools=tools, tool_choice={**allowed, "mode": "required"}))
    assert A_DATE.fullmatch(date)


def test_chat_completions_have_no_custom_tools(api):
    tool = {"type": "custom", "custom": {"name": "note"}}
    with api.sdk() as client, pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=api.model, messages=[{"role": "user", "content": "hi"}], tools=[tool])
    assert raised.value.param == "tools[0].type"
