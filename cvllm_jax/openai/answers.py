"""One choice's text on its way to content, reasoning and tool calls."""

from __future__ import annotations

from collections.abc import Iterable

from cvllm_jax.openai.reasoning import MessageStream
from cvllm_jax.openai.tool_parsers import Event, ReasoningDelta, ToolCallArguments, ToolCallStart

__all__ = ["AnswerReader"]


class AnswerReader:
    """Reads one answer as it arrives and counts what it finds.

    Arguments:
        stream: the model's parsers.
        parallel: whether there may be several calls; otherwise those after the first are left out.
    """

    def __init__(self, stream: MessageStream, *, parallel: bool = True) -> None:
        self._stream = stream
        self._parallel = parallel
        self._unplaced = 0
        """Tokens of which it is not known yet what they are."""
        self.reasoning_tokens = 0
        """Tokens up to the end of the reasoning so far."""
        self.has_calls = False

    def feed(self, text: str, *, tokens: int = 0) -> list[Event]:
        """What ``text``, which this many tokens brought, makes certain."""
        self._unplaced += tokens
        return self._taken(self._stream.feed(text) if text else [])

    def finish(self) -> list[Event]:
        """What is certain now that no text follows."""
        return self._taken(self._stream.finish())

    def _taken(self, events: Iterable[Event]) -> list[Event]:
        taken = []
        for event in events:
            if isinstance(event, ReasoningDelta):
                self.reasoning_tokens += self._unplaced
            self._unplaced = 0
            if isinstance(event, ToolCallStart | ToolCallArguments):
                self.has_calls = True
                if event.index and not self._parallel:
                    continue
            taken.append(event)
        return taken
