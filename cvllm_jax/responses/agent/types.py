"""What an agent is asked, the tools that it has, and what it reports while it works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from cvllm_jax.openai.types import (
    ChatCompletionRequest,
    FinishReasonName,
    Message,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
)

__all__ = [
    "AgentEnded",
    "AgentEnding",
    "AgentEvent",
    "AgentTask",
    "AgentTool",
    "Approval",
    "ApprovalPolicy",
    "CallArguments",
    "CallStarted",
    "ReasoningPiece",
    "TextPiece",
    "ToolEnded",
    "ToolOutcome",
    "ToolRunner",
    "ToolStarted",
    "TurnEnded",
    "TurnStarted",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutcome:
    """What came of one call."""

    text: str
    """What the model reads, also where the tool failed."""
    error: str | None = None
    """Why it failed; None if it did not."""


#: Runs one call. It raises nothing but an error of this library, which becomes the outcome.
type ToolRunner = Callable[[ToolCall], Awaitable[ToolOutcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTool:
    """A tool that the model may call."""

    definition: Tool
    """As the model sees it; its name is unique among the agent's tools."""
    run: ToolRunner | None = None
    """None: whoever asked runs it, and the agent ends with the call."""

    @property
    def name(self) -> str:
        """What the model calls it by."""
        return self.definition.function.name


class Approval(Enum):
    """Whether a call may run."""

    ALLOW = "allow"
    DENY = "deny"
    """The model reads that it was denied."""
    ASK = "ask"
    """The agent ends; whoever asked decides, and goes on with another task."""


#: Asked before a tool runs, for tools that the agent runs itself.
type ApprovalPolicy = Callable[[ToolCall], Awaitable[Approval]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTask:
    """A conversation to go on with."""

    chat: ChatCompletionRequest
    """Its messages, and sampling and formats for every turn. ``tools``, ``stream`` and ``stream_options`` are the
    agent's to set. A ``tool_choice`` that forces a call holds for the first turn: later ones are free to answer."""
    tools: Sequence[AgentTool] = ()
    callable: Collection[str] | None = None
    """Names of the tools that may be called; the others are shown only. None: all."""
    pending: Sequence[ToolCall] = ()
    """Calls of the last assistant message that run before the first turn, whatever the policy says."""
    max_turns: int | None = None
    """Answers of the model, at most; None: no limit."""
    max_output_tokens: int | None = None
    """Tokens of all answers together, at most: the answer that reaches the limit is cut."""
    max_tool_calls: int | None = None
    """Calls that the agent runs, at most. Afterwards the tools that it runs may not be called any more."""
    approval: ApprovalPolicy | None = None
    """None: every call may run."""
    tool_timeout_secs: float = 60.0
    """A tool that takes longer has failed."""
    max_tool_output_chars: int = 100_000
    """A longer result is cut, and says so to the model."""


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The model is asked, and what can be refused was not. ``turn`` counts from 1."""

    turn: int


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A part of the answer's text, as it comes."""

    text: str
    logprobs: Sequence[TokenLogprob] = ()
    """Of the tokens since the last piece, if the task asked for them."""


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """Text of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    """The model begins a call. ``index`` counts the calls of this turn from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of a call's arguments, as JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnded:
    """The model's answer is whole, or was cut: ``finish_reason`` "length"."""

    turn: int
    message: Message
    """With ``content``, ``reasoning_content`` and ``tool_calls``."""
    finish_reason: FinishReasonName
    usage: Usage


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A tool that the agent runs begins. Those of one turn run at the same time."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolEnded:
    """It has ended. Reported in the order of the calls."""

    call: ToolCall
    outcome: ToolOutcome


class AgentEnding(Enum):
    """Why an agent stopped: it answered, reached a limit, or needs its caller."""

    ANSWERED = "answered"
    CUT = "cut"
    """The model's answer reached a length limit."""
    CALLS = "calls"
    """There are calls that whoever asked has to run; those that the agent runs have run."""
    APPROVAL = "approval"
    """Calls wait for approval; the other ones of the same turn have run."""
    MAX_TURNS = "max_turns"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEnded:
    """The last event: how the agent ended, and what it added to the conversation."""

    ending: AgentEnding
    messages: Sequence[Message]
    """What the agent added to the conversation: answers and results of tools, in order."""
    open_calls: Sequence[ToolCall] = ()
    """Calls without a result: to be run, or approved, by whoever asked."""
    usage: Usage | None = field(default=None)
    """Of all turns together; None if no turn was taken."""


type AgentEvent = (
    TurnStarted
    | TextPiece
    | ReasoningPiece
    | CallStarted
    | CallArguments
    | TurnEnded
    | ToolStarted
    | ToolEnded
    | AgentEnded
)
"""What :func:`run_agent` yields, in the order in which it happens; AgentEnded comes last. For use in ``match``."""
