"""``parallel_tool_calls: false``: an answer ends with its first call, and so does the work on it."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from answer_script import WEATHER
from conftest import wait_until_idle
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_engine import Script

from cvllm_jax.openai import ChatCompletionRequest, FunctionDefinition, Message, OpenAIAdapter, Tool, ToolChoice
from cvllm_jax.openai.answers import AnswerReader
from cvllm_jax.openai.tool_parsers import TOOL_PARSERS, fold

sys.path.append(str(Path(__file__).parent / "tool_parsers"))

from tool_formats import FORMATS, TOOLS, cuts

TWO = f"<think>\nHm.\n</think>\n\nI look.\n{WEATHER}\n{WEATHER.replace('Tokyo', 'Rome')}\nDone."
FIRST = TWO[: TWO.index("}}") + 2]


def request(**fields):
    fields = {"tools": [Tool.function(FunctionDefinition("get_weather"))], "parallel_tool_calls": False, **fields}
    return ChatCompletionRequest(model="m", **{"messages": [Message.user("the weather in two?")], **fields})


def ask_every_way(adapter, **fields):
    """Four times: the choices as (calls, content, finish_reason, text of the log probabilities), and the usage."""

    async def whole():
        return await adapter.chat_completion(request(**fields))

    async def chunks():
        options = {"include_usage": True}
        return [chunk async for chunk in adapter.chat_completion_stream(request(stream_options=options, **fields))]

    for answer in (adapter.chat_completion_sync(request(**fields)), asyncio.run(whole())):
        yield [
            ([call.function.arguments for call in choice.message.tool_calls or ()], choice.message.content or "",
             choice.finish_reason, said(choice.logprobs)) for choice in answer.choices
        ], answer.usage  # fmt: skip
    streamed = adapter.chat_completion_stream_sync(request(stream_options={"include_usage": True}, **fields))
    for made in (list(streamed), asyncio.run(chunks())):
        parts = [chunk.choices[0] for chunk in made[:-1]]
        count = max(part.index for part in parts) + 1
        yield [folded([part for part in parts if part.index == index]) for index in range(count)], made[-1].usage


def folded(parts):
    calls = {}
    for call in (call for part in parts for call in part.delta.tool_calls or ()):
        calls[call.index] = calls.get(call.index, "") + call.function.arguments
    text = "".join(part.delta.content or "" for part in parts)
    return list(calls.values()), text, parts[-1].finish_reason, "".join(said(part.logprobs) for part in parts)


def said(logprobs):
    entries = logprobs.content if logprobs is not None else []
    return bytes(byte for entry in entries for byte in entry.bytes).decode()


@pytest.mark.parametrize("forever", [False, True])
def test_generation_ends_with_the_first_call(make_stub, forever):
    engine = make_stub(Script(TWO, forever=forever))
    for choices, usage in ask_every_way(OpenAIAdapter(engine), logprobs=True):
        assert choices == [(['{"location": "Tokyo"}'], "I look.", "tool_calls", FIRST)]
        assert usage.completion_tokens == len(FIRST)
        assert usage.completion_tokens_details.reasoning_tokens <= len("<think>\nHm.\n</think>\n\n")
    wait_until_idle(engine)


def test_other_choices_go_on(make_stub):
    engine = make_stub([Script(TWO, forever=True), Script("Which weather?")])
    for choices, usage in ask_every_way(OpenAIAdapter(engine), n=2, logprobs=True):
        assert choices == [
            (['{"location": "Tokyo"}'], "I look.", "tool_calls", FIRST),
            ([], "Which weather?", "stop", "Which weather?"),
        ]
        assert usage.completion_tokens == len(FIRST) + len("Which weather?")
    wait_until_idle(engine)


def test_answers_without_calls_are_whole(make_stub):
    for choices, usage in ask_every_way(OpenAIAdapter(make_stub(Script("No <tool_call> here.")))):
        assert choices == [([], "No <tool_call> here.", "stop", "")]
        assert usage.completion_tokens == len("No <tool_call> here.")


def test_a_named_function_ends_with_stop(make_stub):
    adapter = OpenAIAdapter(make_stub(Script(WEATHER, forever=True)))
    for choices, usage in ask_every_way(adapter, tool_choice=ToolChoice.function("get_weather")):
        assert choices == [(['{"location": "Tokyo"}'], "", "stop", "")]
        assert usage.completion_tokens == WEATHER.index("}}") + 2


def test_pages_come_back_at_once(scripted):
    before = scripted.stats().generated_tokens
    messages = [Message.user("the weather at length")]
    for choices, usage in ask_every_way(OpenAIAdapter(scripted), messages=messages):
        assert choices == [(['{"location": "Tokyo"}'], "", "tool_calls", "")]
        assert usage.completion_tokens == WEATHER.index("}}") + 2
        wait_until_idle(scripted)
    assert scripted.stats().generated_tokens - before < 4 * 2500


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@settings(deadline=None, max_examples=30)
@given(st.data())
def test_every_format_ends_at_its_first_call(form, data):
    calls = [("f", {"text": "x", "map": {}}), ("get_weather", {"count": 1}), ("f", {})]
    text = form.write("", calls)
    before_second = text.index("get_weather")
    for pieces in (list(text), [text], cuts(text, data.draw)):
        reader = AnswerReader(TOOL_PARSERS[form.parser]().stream(TOOLS), parallel=False)
        events, length = [], 0
        for piece in pieces:
            events += reader.feed(piece, tokens=1)
            length += len(piece)
            assert reader.ended or length <= before_second
        events += reader.finish()
        (call,) = fold(events).tool_calls
        assert (call.name, json.loads(call.arguments)) == calls[0]
        assert fold(events).content is None
