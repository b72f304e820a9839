"""What a session has, and how its conversations go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from cvllm_jax.config import EngineConfig
from cvllm_jax.errors import ConfigError, shown
from cvllm_jax.mcp import McpServerConfig
from cvllm_jax.openai.adapter import AdapterConfig
from cvllm_jax.openai.types import ChatCompletionRequest, Message, ResponseFormat, ToolChoice
from cvllm_jax.responses.agent.types import ApprovalPolicy

if TYPE_CHECKING:
    from cvllm_jax.engine.engine import InferenceEngine

__all__ = ["ConversationOptions", "SessionConfig"]

#: Options that are fields of every turn's request.
_CHAT_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "stop", "seed", "tool_choice", "parallel_tool_calls",
    "response_format", "reasoning_effort", "chat_template_kwargs",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """What a session needs: a model, by exactly one of ``model_path``, ``engine_config`` and ``engine``, and tools."""

    model_path: str | Path | None = None
    """As :attr:`EngineConfig.model_path`; all else as it is by default."""
    engine_config: EngineConfig | None = None
    engine: InferenceEngine | None = None
    """One that is there already. The session does not close it."""
    adapter: AdapterConfig | None = None
    """None: the parsers that the model's files call for, and the sampling that they recommend."""
    mcp_servers: Mapping[str, McpServerConfig] = field(default_factory=dict)
    """MCP servers by label."""
    tools: Sequence[Callable[..., Any]] = ()
    """Functions of one's own; see :func:`function_tool`."""

    def __post_init__(self) -> None:
        given = [name for name in ("model_path", "engine_config", "engine") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                "a session needs exactly one of model_path, engine_config and engine, "
                f"not {' and '.join(given) or 'none of them'}",
                param="model_path",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationOptions:
    """How a conversation goes on: its limits, its tools, and how the model answers.

    Each option has a method, too: ``ConversationOptions().with_max_turns(20)``. Those from ``temperature`` on are the
    fields of a chat completion and hold for every turn; None leaves them to the model's defaults.
    """

    max_turns: int = 10
    """Answers of the model, at most."""
    allowed_tools: Sequence[str] | None = None
    """Names of the tools that the model is shown, as it sees them or as their server calls them. None: all."""
    max_tool_calls: int | None = None
    """Calls that run, at most. Afterwards the model has to answer."""
    approval: ApprovalPolicy | None = None
    """Asked before a call runs. None: every call may run."""
    tool_timeout_secs: float = 60.0
    """A tool that takes longer has failed. MCP servers have limits of their own, too."""
    max_tool_output_chars: int = 100_000
    """A longer result is cut, and says so to the model."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    """Tokens of one answer, at most. A conversation whose answer is cut has ended."""
    stop: str | Sequence[str] | None = None
    seed: int | None = None
    tool_choice: ToolChoice | Literal["auto", "none", "required"] | None = None
    """One that forces a call holds for the first turn: later ones are free to answer."""
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | Mapping[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_turns", 1), ("max_tool_calls", 0), ("max_tool_output_chars", 1)):
            value = getattr(self, name)
            if value is None and name == "max_tool_calls":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number from {least} on, not {shown(value)}", param=name)
        seconds = self.tool_timeout_secs
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 86_400:
            raise ConfigError(
                f"tool_timeout_secs must be more than 0 and at most 86400, not {shown(seconds)}",
                param="tool_timeout_secs",
            )
        if self.allowed_tools is not None:
            names = self.allowed_tools
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise ConfigError(f"allowed_tools must be a list of names, not {shown(names)}", param="allowed_tools")

    def chat(self, messages: Sequence[Message]) -> ChatCompletionRequest:
        """A turn's request; raises RequestError for messages or options that are none."""
        given = {name: value for name in _CHAT_FIELDS if (value := getattr(self, name)) is not None}
        for name, value in given.items():
            if isinstance(value, Mapping):
                given[name] = dict(value)
            elif isinstance(value, Sequence) and not isinstance(value, str):
                given[name] = list(value)
        return ChatCompletionRequest.parse({"model": "", "messages": list(messages), **given})

    def with_max_turns(self, max_turns: int) -> Self:
        return dataclasses.replace(self, max_turns=max_turns)

    def with_allowed_tools(self, names: Sequence[str] | None) -> Self:
        return dataclasses.replace(self, allowed_tools=names)

    def with_max_tool_calls(self, max_tool_calls: int | None) -> Self:
        return dataclasses.replace(self, max_tool_calls=max_tool_calls)

    def with_approval(self, approval: ApprovalPolicy | None) -> Self:
        return dataclasses.replace(self, approval=approval)

    def with_tool_timeout_secs(self, seconds: float) -> Self:
        return dataclasses.replace(self, tool_timeout_secs=seconds)

    def with_max_tool_output_chars(self, characters: int) -> Self:
        return dataclasses.replace(self, max_tool_output_chars=characters)

    def with_temperature(self, temperature: float | None) -> Self:
        return dataclasses.replace(self, temperature=temperature)

    def with_top_p(self, top_p: float | None) -> Self:
        return dataclasses.replace(self, top_p=top_p)

    def with_top_k(self, top_k: int | None) -> Self:
        return dataclasses.replace(self, top_k=top_k)

    def with_min_p(self, min_p: float | None) -> Self:
        return dataclasses.replace(self, min_p=min_p)

    def with_max_tokens(self, max_tokens: int | None) -> Self:
        return dataclasses.replace(self, max_tokens=max_tokens)

    def with_stop(self, stop: str | Sequence[str] | None) -> Self:
        return dataclasses.replace(self, stop=stop)

    def with_seed(self, seed: int | None) -> Self:
        return dataclasses.replace(self, seed=seed)

    def with_tool_choice(self, choice: ToolChoice | Literal["auto", "none", "required"] | None) -> Self:
        return dataclasses.replace(self, tool_choice=choice)

    def with_parallel_tool_calls(self, parallel: bool | None) -> Self:
        return dataclasses.replace(self, parallel_tool_calls=parallel)

    def with_response_format(self, response_format: ResponseFormat | Mapping[str, Any] | None) -> Self:
        return dataclasses.replace(self, response_format=response_format)

    def with_reasoning_effort(self, effort: str | None) -> Self:
        return dataclasses.replace(self, reasoning_effort=effort)

    def with_chat_template_kwargs(self, variables: Mapping[str, Any] | None) -> Self:
        return dataclasses.replace(self, chat_template_kwargs=variables)
