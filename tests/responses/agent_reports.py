"""What agents may report, at random: events in the order in which a real one has them, and what it remembers."""

import json
import secrets
from dataclasses import dataclass

from hypothesis import strategies as st

from cvllm_jax.openai import FunctionCall, Message, TokenLogprob, ToolCall, TopTokenLogprob, Usage
from cvllm_jax.responses.agent.types import (
    AgentEnded,
    AgentEnding,
    CallArguments,
    CallStarted,
    ReasoningPiece,
    TextPiece,
    ToolEnded,
    ToolOutcome,
    ToolStarted,
    TurnEnded,
    TurnStarted,
)
from cvllm_jax.responses.items.tool_targets import McpTarget
from cvllm_jax.responses.items.writer import Writer
from cvllm_jax.responses.types import Response, ResponseRequest

TARGETS = {
    "lookup": "function",
    "note": "custom",
    "a_search": McpTarget(server_label="a", name="search"),
    "b_search": McpTarget(server_label="b", name="search"),
    "delete": McpTarget(server_label="a", name="delete", asks=True),
}
TOOL_NAMES = {("a", "search"): "a_search", ("b", "search"): "b_search"}
USAGE = Usage(prompt_tokens=7, completion_tokens=5, total_tokens=12)

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)


@dataclass
class Report:
    events: list
    messages: list
    """What the agent remembers."""


def make_writer(request=None, **options):
    request = ResponseRequest.parse({"model": "m", "input": "hi", **(request or {})})
    response = Response.begun(request, id="resp_1", created_at=1000)
    return Writer(request, response, targets=TARGETS, clock=lambda: 1001.5, **options)


def written(writer, events):
    """All events of a response whose agent reports these."""
    return [*writer.begin(), *(told for event in events for told in writer.take(event))]


@st.composite
def pieces(draw, text):
    """A text in pieces."""
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=4)))
    return [piece for first, last in zip([0, *cuts], [*cuts, len(text)]) if (piece := text[first:last])]


@st.composite
def reports(draw, *, names=tuple(TARGETS), cut=True):
    """A run of up to three turns; with ``cut``, the last answer may have reached its limit."""
    events, messages = [], []
    for turn in range(1, draw(st.integers(1, 3)) + 1):
        events.append(TurnStarted(turn))
        message = _turn(draw, events, names)
        calls = message.tool_calls or []
        was_cut = cut and draw(st.booleans())
        reason = "length" if was_cut else "tool_calls" if calls else "stop"
        events.append(TurnEnded(turn=turn, message=message, finish_reason=reason, usage=USAGE))
        if was_cut or not calls:
            content = message.content or ""
            messages.append(message.model_copy(update={"content": content, "tool_calls": None}))
            ending = AgentEnding.CUT if was_cut else AgentEnding.ANSWERED
            return _ended(events, messages, ending)
        messages.append(message)
        left = [call for call in calls if call.function.name in ("lookup", "note", "delete")]
        run = [call for call in calls if call not in left]
        started = [call for call in run if draw(st.booleans())]  # the others were refused
        events.extend(map(ToolStarted, started))
        for call in run:
            outcome = ToolOutcome(
                text=draw(TEXT), error=None if call in started and draw(st.booleans()) else "it failed"
            )
            events.append(ToolEnded(call, outcome))
            messages.append(Message.tool_with_name(call.id, outcome.text, call.function.name))
        if left:
            asks = any(call.function.name == "delete" for call in left)
            return _ended(events, messages, AgentEnding.APPROVAL if asks else AgentEnding.CALLS, left)
    return _ended(events, messages, AgentEnding.MAX_TURNS)


def _ended(events, messages, ending, open_calls=()):
    events.append(AgentEnded(ending=ending, messages=messages, open_calls=open_calls, usage=USAGE))
    return Report(events, messages)


def _turn(draw, events, names):
    """The events of one answer, and the answer."""
    reasoning, content, calls = "", "", []
    if draw(st.booleans()):
        reasoning = draw(TEXT)
        events.extend(map(ReasoningPiece, draw(pieces(reasoning))))
    for name in draw(st.lists(st.sampled_from(("", *names)), max_size=4)):
        text = draw(TEXT)
        if not name:
            content += text
            events.extend(TextPiece(piece, [logprob(piece)]) for piece in draw(pieces(text)))
            continue
        arguments = {"input": text} if name == "note" else draw(st.dictionaries(TEXT, VALUES, max_size=2))
        written = json.dumps(arguments, ensure_ascii=draw(st.booleans()))
        call = ToolCall(id=f"call_{secrets.token_hex(12)}", function=FunctionCall(name=name, arguments=written))
        events.append(CallStarted(len(calls), call.id, name))
        events.extend(CallArguments(len(calls), piece) for piece in draw(pieces(written)))
        calls.append(call)
    return Message(
        role="assistant",
        content=content if content or not calls else None,
        reasoning_content=reasoning or None,
        tool_calls=calls or None,
    )


def logprob(text):
    top = TopTokenLogprob(token=text, logprob=-0.5, bytes=None)
    return TokenLogprob(token=text, logprob=-0.5, bytes=list(text.encode()), top_logprobs=[top])
