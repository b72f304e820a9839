"""What a parser reports while text arrives, and the message that the reports add up to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "ContentDelta",
    "Event",
    "ParsedMessage",
    "ParsedToolCall",
    "ReasoningDelta",
    "ToolCallArguments",
    "ToolCallStart",
    "fold",
    "merged",
]


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """Text for the reader of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """Text of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins; its name is whole. ``index`` counts the calls of one answer from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """The next piece of a call's arguments, as JSON text."""

    index: int
    text: str


type Event = ContentDelta | ReasoningDelta | ToolCallStart | ToolCallArguments


@dataclass(frozen=True, slots=True)
class ParsedToolCall:
    """One call: ``arguments`` is JSON text as the model wrote it, so it may be malformed or cut."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """A whole answer. ``content`` is None where the answer is nothing but calls or reasoning."""

    content: str | None
    reasoning: str | None
    tool_calls: Sequence[ParsedToolCall]


def fold(events: Iterable[Event]) -> ParsedMessage:
    """The message that the events of a whole stream add up to."""
    content: list[str] = []
    reasoning: list[str] = []
    starts: list[ToolCallStart] = []
    arguments: list[list[str]] = []
    for event in events:
        match event:
            case ContentDelta(text):
                content.append(text)
            case ReasoningDelta(text):
                reasoning.append(text)
            case ToolCallStart():
                starts.append(event)
                arguments.append([])
            case ToolCallArguments(index, text):
                arguments[index].append(text)
    calls = [ParsedToolCall(start.id, start.name, "".join(pieces)) for start, pieces in zip(starts, arguments)]
    text = "".join(content)
    thought = "".join(reasoning)
    return ParsedMessage(text if text or not (calls or thought) else None, thought or None, calls)


def merged(events: Iterable[Event]) -> list[Event]:
    """The same events with neighbours of one kind joined."""
    groups: list[tuple[Event, list[str]]] = []
    for event in events:
        text = "" if isinstance(event, ToolCallStart) else event.text
        if groups and _same_target(groups[-1][0], event):
            groups[-1][1].append(text)
        else:
            groups.append((event, [text]))
    return [_with_text(event, "".join(pieces)) for event, pieces in groups]


def _same_target(one: Event, other: Event) -> bool:
    if isinstance(one, ToolCallArguments) and isinstance(other, ToolCallArguments):
        return one.index == other.index
    return type(one) is type(other) and not isinstance(one, ToolCallStart)


def _with_text(event: Event, text: str) -> Event:
    match event:
        case ToolCallStart():
            return event
        case ToolCallArguments(index):
            return ToolCallArguments(index, text)
        case _:
            return type(event)(text)
