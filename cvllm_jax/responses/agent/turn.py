"""One answer of the model, read from the chunks of its stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cvllm_jax.openai.types import (
    ChatCompletionChunk,
    FinishReasonName,
    Message,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
    merge_tool_call_delta,
)
from cvllm_jax.responses.agent.types import AgentEvent, CallArguments, CallStarted, ReasoningPiece, TextPiece

__all__ = ["TurnReader"]


class TurnReader:
    """Makes events of chunks, and at the end the whole message. For streams of one choice, with usage."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._logprobs: list[TokenLogprob] = []
        """Of the tokens since the last piece."""
        self._finish_reason: FinishReasonName | None = None
        self._usage: Usage | None = None

    def feed(self, chunk: ChatCompletionChunk) -> Iterator[AgentEvent]:
        """What a chunk adds."""
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            self._finish_reason = choice.finish_reason or self._finish_reason
            if choice.logprobs is not None:
                self._logprobs += choice.logprobs.content or ()
            delta = choice.delta
            if delta.content:
                self._content.append(delta.content)
                yield TextPiece(delta.content, self._logprobs_of(delta.content))
            if delta.reasoning_content:
                self._reasoning.append(delta.reasoning_content)
                yield ReasoningPiece(delta.reasoning_content)
            for call in delta.tool_calls or ():
                yield from self._call(call)
            if delta.content or delta.reasoning_content or delta.tool_calls:
                self._logprobs = []  # those of reasoning and calls are nobody's

    def _logprobs_of(self, text: str) -> Sequence[TokenLogprob]:
        """Those of the last tokens, as many as it takes to write ``text``: markup may have come before them."""
        missing, first = len(text.encode()), len(self._logprobs)
        while missing > 0 and first > 0:
            first -= 1
            missing -= len(self._logprobs[first].bytes or ())
        return tuple(self._logprobs[first:])

    def _call(self, delta: ToolCallDelta) -> Iterator[AgentEvent]:
        known = len(self._calls)
        merge_tool_call_delta(self._calls, delta)
        if len(self._calls) > known:
            yield CallStarted(delta.index, self._calls[-1].id, self._calls[-1].function.name)
        if delta.function is not None and delta.function.arguments:
            yield CallArguments(delta.index, delta.function.arguments)

    @property
    def message(self) -> Message:
        """The whole answer. Its content is None where it has calls and no text."""
        content = "".join(self._content)
        return Message(
            role="assistant",
            content=content if content or not self._calls else None,
            reasoning_content="".join(self._reasoning) or None,
            tool_calls=self._calls or None,
        )

    @property
    def finish_reason(self) -> FinishReasonName:
        """Why the answer ended, once it has."""
        assert self._finish_reason is not None
        return self._finish_reason

    @property
    def usage(self) -> Usage:
        """The turn's tokens, once it has ended."""
        assert self._usage is not None
        return self._usage
