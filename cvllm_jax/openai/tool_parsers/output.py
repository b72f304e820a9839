"""Where parsers write: content, reasoning and calls, in order."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from cvllm_jax.openai.tool_parsers.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
    merged,
)

__all__ = ["Output", "tool_call_id"]


def tool_call_id() -> str:
    """A new id of the form that OpenAI uses."""
    return f"call_{secrets.token_hex(12)}"


class Output:
    """Turns what a parser finds into events.

    Whitespace around calls belongs to their markup: it is left out of the content. Only between two pieces of text
    that calls stand between, the first whitespace of the gap is kept, so that words do not run together. Content
    without calls passes unchanged.
    """

    def __init__(self, make_id: Callable[[], str] = tool_call_id) -> None:
        self._make_id = make_id
        self._events: list[Event] = []
        self.calls_ended = 0
        """Calls that are complete."""
        self._calls = 0
        self._written = False
        """Whether the last call has arguments yet."""
        self._space: list[str] = []
        """Whitespace since the last text or call; what comes next decides its fate."""
        self._gap = ""
        self._after_call = False
        self._has_text = False

    def content(self, text: str) -> None:
        body = text.rstrip()
        if body:
            bare = body.lstrip()
            space = "".join(self._space) + body[: len(body) - len(bare)]
            if self._after_call:
                space = (self._gap or space) if self._has_text else ""
            self._events.append(ContentDelta(space + bare))
            self._space, self._gap = [], ""
            self._after_call, self._has_text = False, True
        if len(body) < len(text):
            self._space.append(text[len(body) :])

    def reasoning(self, text: str) -> None:
        if text:
            self._events.append(ReasoningDelta(text))

    def start(self, name: str) -> None:
        """A call begins."""
        self._gap = self._gap or "".join(self._space)
        self._space = []
        self._after_call = True
        self._events.append(ToolCallStart(self._calls, self._make_id(), name))
        self._calls += 1
        self._written = False

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that began last."""
        if text:
            self._events.append(ToolCallArguments(self._calls - 1, text))
            self._written = True

    def finish_call(self) -> None:
        """The call is complete: without arguments it has none, which is written as an empty object."""
        if not self._written:
            self.arguments("{}")
        self.calls_ended += 1

    def finish(self) -> None:
        """No more follows."""
        if not self._after_call and self._space:
            self._events.append(ContentDelta("".join(self._space)))
        self._space = []

    def drain(self) -> list[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        return merged(events) if len(events) > 1 else events
