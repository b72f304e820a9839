"""Formats that checkpoints describe themselves: as transformers reads them, and in any pieces."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_formats import MARKUP, cuts

from cvllm_jax.errors import ModelLoadError
from cvllm_jax.openai import get_tool_parser
from cvllm_jax.openai.reasoning import get_reasoning_parser, message_stream
from cvllm_jax.openai.tool_parsers import ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallStart, fold
from cvllm_jax.openai.tool_parsers.response_template import ResponseTemplateParser

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "response_template.json").read_text(encoding="utf-8"))
TEMPLATES = GOLDEN["templates"]
MORE_MARKUP = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>", "<|channel|>final<|message|>", "<|end|>"),
    *("<|channel|>commentary to=functions.f", "<|message|>", "<|call|>", "<|START_ACTION|>", "<|END_ACTION|>"),
    *(
        "<|tool_call>call:f",
        "<tool_call|>",
        '<|"|>',
        "a:",
        "<|text|>",
        "<|invoke|>",
        "<|end_message|>",
        "[f]\n",
        "a=1\n",
    ),
    *("<|message_model|>", "<response>\n", "</response>", '[{"tool_name": "f", "parameters": {}}]'),
)
nonsense = st.lists(st.sampled_from(MARKUP + MORE_MARKUP), max_size=10).map("".join)
every_template = pytest.mark.parametrize("name", TEMPLATES)


def read(name, pieces, prompt=""):
    stream = ResponseTemplateParser(TEMPLATES[name], make_id=lambda: "id").stream(GOLDEN["tools"], prompt=prompt)
    return fold([*(event for piece in pieces for event in stream.feed(piece)), *stream.finish()])


def as_message(message):
    """What transformers calls it, but for the reasoning's key."""
    found = {"content": message.content or None, "thinking": message.reasoning}
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
        for call in message.tool_calls
    ]
    return {key: value for key, value in {**found, "tool_calls": calls}.items() if value}


@every_template
def test_answers_read_as_transformers_reads_them(name):
    for _, prompt, text, expected in (case for case in GOLDEN["cases"] if case[0] == name):
        expected = {{"reasoning_content": "thinking"}.get(key, key): value for key, value in expected.items()}
        expected.pop("role", None)
        assert as_message(read(name, [text], prompt)) == expected, text
        assert read(name, text, prompt) == read(name, [text], prompt), text


@every_template
@settings(deadline=None)
@given(nonsense, st.data())
def test_any_text_in_any_pieces_gives_one_message(name, text, data):
    whole = read(name, [text])
    assert read(name, text) == whole
    assert read(name, cuts(text, data.draw)) == whole


@every_template
@settings(deadline=None)
@given(st.data())
def test_answers_in_any_pieces_give_one_message(name, data):
    _, prompt, text, _ = data.draw(st.sampled_from([case for case in GOLDEN["cases"] if case[0] == name]))
    text = text[: data.draw(st.integers(0, len(text)))]
    assert read(name, cuts(text, data.draw), prompt) == read(name, [text], prompt)


def test_text_and_arguments_are_passed_on_while_they_arrive():
    stream = ResponseTemplateParser(TEMPLATES["channels"]).stream()
    assert stream.feed("<|channel|>analysis<|message|>Well") == [ReasoningDelta("Well")]
    stream.feed("<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json")
    start, arguments = stream.feed('<|message|>{"a": 1')
    assert isinstance(start, ToolCallStart)
    assert arguments == ToolCallArguments(0, '{"a": 1')
    stream = ResponseTemplateParser(TEMPLATES["tags"]).stream()
    assert stream.feed("So <") == [ContentDelta("So")]
    start, arguments = stream.feed('tool_call>{"name": "f", "arguments": {"a')
    assert isinstance(start, ToolCallStart)
    assert arguments == ToolCallArguments(0, '{"a')


@pytest.mark.parametrize(
    ("name", "text", "content", "calls"),
    [
        ("tags", "Hi <tool_call>[1]</tool_call>", "Hi <tool_call>[1]</tool_call>", []),
        ("tags", 'Hi <tool_call>{"name": "f', 'Hi <tool_call>{"name": "f', []),
        ("tags", '<tool_call>{"name": "f", "arg', None, [("f", "")]),
        ("tags", '<tool_call>{"name": "f", oops</tool_call>', None, [("f", "{}")]),
        ("tags", "One<|im_end|> two", "One two", []),
        ("dialect", "<|tool_call>call:f{a:<tool_call|>", None, [("f", "{a:")]),
        ("dialect", '<|tool_call>call:f{a:"\\ud83d"}<tool_call|>', None, [("f", '{"a": "\\ud83d"}')]),
        ("lines", "</think>[f]\na=x\n\n", "", [("f", "a=x")]),
        ("inline", "<tool_call><function=f><parameter=b>1</parameter><parameter=b>2", None, [("f", '{"b": 1}')]),
    ],
)
def test_malformed_answers(name, text, content, calls):
    message = read(name, [text])
    assert message.content == (content or None if calls else content)
    assert [(call.name, call.arguments) for call in message.tool_calls] == calls


def test_a_checkpoints_template_is_used_where_no_format_is_known():
    parser = get_tool_parser("auto", chat_template="{{ messages }}", response_template=TEMPLATES["list"])
    assert isinstance(parser, ResponseTemplateParser)
    assert get_tool_parser("auto", chat_template="<tool_call>", response_template=TEMPLATES["list"]).name == "hermes"
    stream = message_stream(get_reasoning_parser("think"), parser, prompt="<|CHATBOT|><|START_THINKING|>")
    assert fold([*stream.feed("Hm"), *stream.finish()]).reasoning == "Hm"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "has version 2; supported is 1"),
        ({"fields": {}}, "has no fields"),
        ({"extra": 1}, r"has unknown keys \['extra'\]"),
        ({"start_anchor": None}, "neither start_anchor nor start_anchor_pattern"),
        ({"start_anchor_pattern": "x"}, "both start_anchor and start_anchor_pattern"),
        ({"start_anchor": ["a", ""]}, "start_anchor of the response_template is neither text nor a list"),
        ({"fields": {"a": {}, "b": {}}}, "more than one field without an opening: a, b"),
        ({"fields": {"a": []}}, "the field 'a' of the response_template is no object"),
        ({"fields": {"a": {"opens": "x"}}}, r"the field 'a' of the response_template has unknown keys \['opens'\]"),
        ({"fields": {"a": {"open": "x", "content": "yaml"}}}, "a content type 'yaml', which is not known"),
        ({"fields": {"a": {"open": "x", "join": 1}}}, "join of a wrong type"),
        ({"fields": {"a": {"open": "x", "content": "xml-inline"}}}, "xml-inline without a tag_pattern"),
        ({"fields": {"a": {"open_pattern": "(?=x)"}}}, r"has a group '\(\?=x', which is not supported here"),
        ({"fields": {"a": {"open_pattern": "(x"}}}, "has a group that is not closed"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused(change, reason):
    with pytest.raises(ModelLoadError, match=reason):
        ResponseTemplateParser({**TEMPLATES["tags"], **change})


def test_reading_is_linear():
    """Text that would take ``re`` quadratic time or worse."""
    field = {"open_pattern": r"(?:a|aa)+b|(x+x+)+y", "close": "</a>"}
    parser = ResponseTemplateParser({"start_anchor": "s", "fields": {"thinking": field, "content": {}}})
    for text in ("a" * 5_000, "x" * 5_000, "ab" * 2_500):
        stream = parser.stream()
        message = fold([*(event for char in text for event in stream.feed(char)), *stream.finish()])
        assert (message.content or "") + (message.reasoning or "") in (text, text[2:])
