"""What holds for every parser: nothing lost, nothing taken back, and the same message however the text is cut."""

import json

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tool_formats import FORMATS, TOOLS, calls, cuts, nonsense, prose, read

from cvllm_jax.openai import get_tool_parser
from cvllm_jax.openai.tool_parsers import TOOL_PARSERS, ContentDelta, ToolCallArguments, ToolCallStart, fold
from cvllm_jax.openai.tool_parsers.reader import TextReader

every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
every_parser = pytest.mark.parametrize("parser", TOOL_PARSERS)


@every_format
@settings(deadline=None)
@given(prose, calls)
def test_calls_come_back_as_they_were_written(form, content, made):
    if form.parser in ("qwen3_coder", "glm45", "minimax_m2"):  # which know the types of declared tools only
        assume(all(name != "unknown_tool" for name, _ in made))
    message = form.parse(form.write(content, made))
    assert [call.name for call in message.tool_calls] == [name for name, _ in made]
    assert [json.loads(call.arguments) for call in message.tool_calls] == [arguments for _, arguments in made]
    assert [call.id for call in message.tool_calls] == [f"id{index}" for index in range(len(made))]
    if not made:
        assert message.content == content
    elif form.parser != "pythonic":  # which has calls or text
        assert message.content == (content.rstrip() or None)
    if form.verbatim and form.parser != "granite":
        written = [json.dumps(arguments, ensure_ascii=False) for _, arguments in made]
        assert [call.arguments for call in message.tool_calls] == written


@every_parser
@settings(deadline=None)
@given(nonsense, st.data())
@example('<tool_call>{"name": "f", "arguments": "\\ud83d\\ude00"}', None)
def test_any_text_in_any_pieces_gives_one_message(parser, text, data):
    whole = read(parser, [text])
    assert read(parser, list(text)) == whole
    if data is not None:
        assert read(parser, cuts(text, data.draw)) == whole
    content, found = TOOL_PARSERS[parser](make_id=lambda: "x").parse(text, TOOLS)
    assert content == whole.content
    assert [(call.name, call.arguments) for call in found] == [(call.name, call.arguments) for call in whole.tool_calls]


@every_format
@settings(deadline=None)
@given(st.data())
def test_written_calls_in_any_pieces_give_one_message(form, data):
    text = form.write(data.draw(prose), data.draw(calls))
    assert read(form.parser, cuts(text, data.draw)) == form.parse(text)


@every_format
def test_every_single_cut_gives_one_message(form):
    text = form.write("Let me see.", [("get_weather", {"text": 'Köln "<" \\', "list": [1, {}]}), ("f", {})])
    whole = form.parse(text)
    assert all(read(form.parser, [text[:at], text[at:]]) == whole for at in range(len(text) + 1))


@every_format
def test_a_cut_text_has_the_beginning_of_the_whole(form):
    """At the end of tokens: a call stays one from its name on, and its arguments are what was written until then."""
    text = form.write("Let me see.", [("get_weather", {"text": "Köln", "list": [1, 2]}), ("f", {"count": 1})])
    whole = form.parse(text)
    found = []
    for end in range(len(text)):
        message = form.parse(text[:end])
        for call, complete in zip(message.tool_calls, whole.tool_calls, strict=False):
            assert call.name == complete.name
            assert complete.arguments.startswith(call.arguments)
        found.append(len(message.tool_calls))
        if len(message.tool_calls) == 2:  # what closes a call is no content, not even if it is cut
            assert message.content == whole.content
    assert found == sorted(found)
    assert not any(found[: text.index("get_weather") + len("get_weather")])


@every_format
@settings(deadline=None)
@given(prose, calls)
def test_events_only_add(form, content, made):
    """A name comes whole and once, before its arguments; content that was passed on stays content."""
    text = form.write(content, made)
    stream = TOOL_PARSERS[form.parser]().stream(TOOLS)
    events = [*(event for char in text for event in stream.feed(char)), *stream.finish()]
    started = 0
    for event in events:
        match event:
            case ToolCallStart(index, _, name):
                assert index == started
                assert name
                started += 1
            case ToolCallArguments(index, piece):
                assert index == started - 1
                assert piece
            case ContentDelta(piece):
                assert piece
    message = fold(events)
    assert len({call.id for call in message.tool_calls}) == len(message.tool_calls)


@every_parser
@settings(deadline=None)
@given(prose)
def test_text_without_calls_is_unchanged(parser, text):
    assert get_tool_parser(parser).parse(text) == (text, [])
    assert get_tool_parser(parser).parse(text, TOOLS) == (text, [])


@every_parser
@pytest.mark.parametrize(
    "text",
    ["", " ", "\n", "a < b", "{", "}", "[", "[]", "{}", '{"a": 1}', "[1, 2]", "[link](url)", "if (x) { y(); }", "<b>"],
)
def test_text_that_only_begins_like_a_call_is_unchanged(parser, text):
    assert get_tool_parser(parser).parse(text) == (text, [])


@every_format
def test_arguments_arrive_before_the_call_is_complete(form):
    text = form.write("", [("f", {"count": 1, "text": "a" * 50, "flag": True})])
    stream = TOOL_PARSERS[form.parser]().stream(TOOLS)
    events = stream.feed(text[: text.index("flag")])
    assert any(isinstance(event, ToolCallArguments) and "aaa" in event.text for event in events)


@every_format
def test_names_that_are_no_tools_are_calls_too(form):
    assert [call.name for call in form.parse(form.write("", [("unknown_tool", {})])).tool_calls] == ["unknown_tool"]


@every_format
def test_whitespace_around_calls_is_markup(form):
    if form.parser == "pythonic":
        pytest.skip("has calls or text")
    text = form.write("Before. \n", [("f", {})]) + " \n"
    assert form.parse(text).content == "Before."
    if form.parser != "gpt_oss":  # where every text has its own message
        between = "\n\n" if form.write("", [("f", {})]).startswith("\n") else "\n"
        assert form.parse(text + "After. ").content == f"Before. {between}After. "


@every_parser
def test_a_finished_stream_takes_nothing(parser):
    stream = get_tool_parser(parser).stream()
    assert stream.finish() == []
    assert stream.finish() == []
    with pytest.raises(ValueError, match="finished"):
        stream.feed("x")


HOSTILE = {
    "openings": lambda write: write("", [("f", {"text": "x"})])[:12] * 8_000,
    "nesting": lambda write: write("", [("f", {"list": []})]).replace("[]", "[" * 100_000),
    "open string": lambda write: write("", [("f", {"text": "@"})]).replace("@", '\\"<' * 30_000).replace('"}', ""),
    "spaces": lambda write: write("", [("f", {})])[:11] + " " * 100_000,
    "text": lambda write: "x " * 50_000,
}


@every_format
@pytest.mark.parametrize("shape", HOSTILE)
def test_reading_is_linear(form, shape, monkeypatch):
    """No text is looked at again and again: what is kept unread stays as short as a marker."""
    text = HOSTILE[shape](form.write)[:100_000]
    lengths = []
    feed = TextReader.feed

    def counting(reader, piece):
        feed(reader, piece)
        lengths.append(len(reader._text))

    monkeypatch.setattr(TextReader, "feed", counting)
    pieces = [text[at : at + 1] for at in range(2_000)] + [text[at : at + 37] for at in range(2_000, len(text), 37)]
    read(form.parser, pieces)
    assert max(lengths) < 100
