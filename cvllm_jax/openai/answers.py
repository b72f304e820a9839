"""One choice's text on its way to content, reasoning and tool calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from cvllm_jax.openai.reasoning import MessageStream
from cvllm_jax.openai.tool_parsers import Event, ReasoningDelta, ToolCallArguments, ToolCallStart
from cvllm_jax.params import FinishReason, GenerationOutput

__all__ = ["AnswerReader"]


class AnswerReader:
    """Reads one answer as it arrives and counts what it finds.

    Arguments:
        stream: the model's parsers.
        parallel: whether there may be several calls; otherwise the answer ends with the first.
    """

    def __init__(self, stream: MessageStream, *, parallel: bool = True) -> None:
        self._stream = stream
        self._parallel = parallel
        self._unplaced = 0
        """Tokens of which it is not known yet what they are."""
        self.reasoning_tokens = 0
        """Tokens up to the end of the reasoning so far."""
        self.has_calls = False
        self.ended = False
        """The answer is complete, whatever its model would go on to say."""
        self._tokens = self._characters = 0
        """What was fed until then."""

    def feed(self, text: str, *, tokens: int = 0) -> list[Event]:
        """What ``text``, which this many tokens brought, makes certain."""
        if self.ended:
            return []
        self._tokens += tokens
        self._characters += len(text)
        self._unplaced += tokens
        return self._taken(self._stream.feed(text) if text else [])

    def finish(self) -> list[Event]:
        """What is certain now that no text follows."""
        return [] if self.ended else self._taken(self._stream.finish())

    def part_of(self, output: GenerationOutput) -> GenerationOutput:
        """What belongs to the answer of a generation that may have gone on past its end."""
        if not self.ended:
            return output
        count = self._tokens
        return dataclasses.replace(
            output,
            tokens=output.tokens[:count],
            text=output.text[: self._characters],
            finish_reason=FinishReason.Stop,
            logprobs=None if output.logprobs is None else output.logprobs[:count],
            top_logprobs=None if output.top_logprobs is None else output.top_logprobs[:count],
            stats=dataclasses.replace(output.stats, generated_tokens=count),
        )

    def _taken(self, events: Iterable[Event]) -> list[Event]:
        taken = []
        for event in events:
            in_first_call = isinstance(event, ToolCallStart | ToolCallArguments) and event.index == 0
            if self.has_calls and not in_first_call and not self._parallel:
                self.ended = True
                break
            if isinstance(event, ReasoningDelta):
                self.reasoning_tokens += self._unplaced
            self._unplaced = 0
            self.has_calls |= in_first_call
            taken.append(event)
        if self._stream.calls_ended and not self._parallel:
            self.ended = True
        return taken
