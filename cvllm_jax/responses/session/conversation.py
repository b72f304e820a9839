"""What comes of a session's conversation, while it goes on and at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from cvllm_jax.errors import OtherError
from cvllm_jax.openai.types import FinishReasonName, FunctionCall, Message, ToolCall, Usage
from cvllm_jax.responses.agent.types import (
    AgentEnded,
    AgentEnding,
    AgentEvent,
    ToolEnded,
    ToolOutcome,
    ToolStarted,
    TurnEnded,
)

__all__ = [
    "ConversationRecorder",
    "ConversationResult",
    "ConversationStep",
    "ConversationStream",
    "ToolCallResult",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallResult:
    """One call and what came of it."""

    call: ToolCall
    outcome: ToolOutcome
    executed: bool
    """False: it was not run, because it was denied, was over the limit, or made no sense."""
    server: str | None = None
    """The label of the MCP server that has the tool; None for a function of one's own."""

    @property
    def id(self) -> str:
        """The call's id, which its result names."""
        return self.call.id

    @property
    def function(self) -> FunctionCall:
        """The name that the model used, and the arguments."""
        return self.call.function

    @property
    def result(self) -> str:
        """What the model read."""
        return self.outcome.text

    @property
    def error(self) -> str | None:
        """Why it failed; None if it did not."""
        return self.outcome.error


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationStep:
    """One answer of the model, and what came of its calls."""

    turn: int
    """From 1."""
    message: Message
    finish_reason: FinishReasonName
    usage: Usage
    tool_calls: Sequence[ToolCallResult] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationResult:
    """How far a conversation has come."""

    final_message: str | None
    """The text of the last answer; None if it has none."""
    tool_calls_executed: Sequence[ToolCallResult]
    """In the order in which the model made them."""
    turns_taken: int
    completed: bool
    """The model has answered. Otherwise ``ending`` says why not."""
    ending: AgentEnding
    usage: Usage
    """Of all turns together."""
    steps: Sequence[ConversationStep]
    messages: Sequence[Message]
    """The whole conversation, to go on with."""
    open_calls: Sequence[ToolCall] = ()
    """Calls that wait for approval. They run if ``messages`` are given back as they are; a tool's message that
    answers one is taken in its place."""


class ConversationRecorder:
    """Makes the result of a conversation's events."""

    def __init__(self, messages: Sequence[Message], servers: Mapping[str, str]) -> None:
        """With the conversation so far, and the MCP servers by the names of their tools."""
        self._messages = messages
        self._servers = servers
        self._steps: list[ConversationStep] = []
        self._calls: list[ToolCallResult] = []
        self._started: set[str] = set()
        self.result: ConversationResult | None = None

    def feed(self, event: AgentEvent) -> None:
        match event:
            case TurnEnded(turn=turn, message=message, finish_reason=reason, usage=usage):
                self._steps.append(ConversationStep(turn=turn, message=message, finish_reason=reason, usage=usage))
            case ToolStarted(call):
                self._started.add(call.id)
            case ToolEnded(call, outcome):
                self._add(call, outcome)
            case AgentEnded():
                self.result = self._ended(event)

    def _add(self, call: ToolCall, outcome: ToolOutcome) -> None:
        result = ToolCallResult(
            call=call, outcome=outcome, executed=call.id in self._started, server=self._servers.get(call.function.name)
        )
        self._calls.append(result)
        if self._steps:  # a call that was approved afterwards belongs to no step of this conversation
            last = self._steps[-1]
            self._steps[-1] = dataclasses.replace(last, tool_calls=(*last.tool_calls, result))

    def _ended(self, end: AgentEnded) -> ConversationResult:
        return ConversationResult(
            final_message=_text(self._steps[-1].message) if self._steps else None,
            tool_calls_executed=[result for result in self._calls if result.executed],
            turns_taken=len(self._steps),
            completed=end.ending is AgentEnding.ANSWERED,
            ending=end.ending,
            usage=end.usage or Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0),
            steps=self._steps,
            messages=[*self._messages, *end.messages],
            open_calls=end.open_calls,
        )


def _text(message: Message) -> str | None:
    return message.content if isinstance(message.content, str) and message.content else None


#: What happens, and what makes the result of it.
type AgentEvents = tuple[AsyncGenerator[AgentEvent, None], ConversationRecorder]


class ConversationStream:
    """An async iterator of what happens in a conversation; ``result`` is there when it has ended.

    Leaving it early (``aclose``, ``async with``, cancelling the task) ends the model's request and the tools that run.
    """

    def __init__(self, begin: Callable[[], Awaitable[AgentEvents]]) -> None:
        self._recorder: ConversationRecorder | None = None
        self._events = self._run(begin)

    async def _run(self, begin: Callable[[], Awaitable[AgentEvents]]) -> AsyncGenerator[AgentEvent, None]:
        events, self._recorder = await begin()
        async with aclosing(events):
            async for event in events:
                self._recorder.feed(event)
                yield event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AgentEvent:
        return await anext(self._events)

    @property
    def result(self) -> ConversationResult:
        """Raises OtherError while the conversation goes on."""
        if self._recorder is None or self._recorder.result is None:
            raise OtherError("the conversation has not ended yet")
        return self._recorder.result

    async def finish(self) -> ConversationResult:
        """Wait for the end, passing over the events in between."""
        async for _ in self:
            pass
        return self.result

    async def aclose(self) -> None:
        """End the conversation's turn, and the calls that run."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
