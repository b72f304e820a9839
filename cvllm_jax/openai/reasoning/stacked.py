"""Reasoning and tool calls of one answer together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from cvllm_jax.openai.reasoning.registry import ReasoningParser
from cvllm_jax.openai.tool_parsers.events import ContentDelta, Event
from cvllm_jax.openai.tool_parsers.parser import ParserStream, ToolParser

__all__ = ["MessageStream", "message_stream"]


class MessageStream(Protocol):
    """One answer being parsed while it arrives."""

    @property
    def calls_ended(self) -> int: ...

    def feed(self, delta: str) -> list[Event]: ...

    def finish(self) -> list[Event]: ...


class _Plain:
    """Text that nothing is looked for in."""

    calls_ended = 0

    def feed(self, delta: str) -> list[Event]:
        return [ContentDelta(delta)] if delta else []

    def finish(self) -> list[Event]:
        return []


class _Stacked:
    """Reasoning is split off first; calls are looked for in the rest."""

    def __init__(self, reasoning: ParserStream, tools: ParserStream) -> None:
        self._reasoning = reasoning
        self._tools = tools

    @property
    def calls_ended(self) -> int:
        return self._tools.calls_ended

    def feed(self, delta: str) -> list[Event]:
        return self._pass(self._reasoning.feed(delta))

    def finish(self) -> list[Event]:
        return [*self._pass(self._reasoning.finish()), *self._tools.finish()]

    def _pass(self, events: Iterable[Event]) -> list[Event]:
        passed: list[Event] = []
        for event in events:
            passed += self._tools.feed(event.text) if isinstance(event, ContentDelta) else [event]
        return passed


def message_stream(
    reasoning: ReasoningParser | None, tool_parser: ToolParser | None, *, prompt: str = "", tools: Sequence[Any] = ()
) -> MessageStream:
    """A parser of one answer, for the reasoning and the calls that the two parsers find, either of which may be None.

    ``prompt`` is the rendered prompt, or its end: its template may have opened the reasoning already.
    """
    if tool_parser is not None and (tool_parser.handles_reasoning or reasoning is None):
        return tool_parser.stream(tools, prompt=prompt)
    if reasoning is None:
        return _Plain()
    split = reasoning.stream(starts_inside=reasoning.starts_inside(prompt))
    return _Stacked(split, tool_parser.stream(tools, prompt=prompt)) if tool_parser is not None else split
