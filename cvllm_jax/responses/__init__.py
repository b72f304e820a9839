"""Agents: conversations whose tools really run, and OpenAI's Responses API.

Importing this package is cheap: each name loads what it needs when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "cvllm_jax.responses.agent.loop": ("run_agent",),
    "cvllm_jax.responses.agent.types": (
        "AgentEnded", "AgentEnding", "AgentEvent", "AgentTask", "AgentTool", "Approval", "CallArguments",
        "CallStarted", "ReasoningPiece", "TextPiece", "ToolEnded", "ToolOutcome", "ToolStarted", "TurnEnded",
        "TurnStarted",
    ),
    "cvllm_jax.responses.session.conversation": (
        "ConversationResult", "ConversationStep", "ConversationStream", "ToolCallResult",
    ),
    "cvllm_jax.responses.agent.functions": ("function_tool",),
    "cvllm_jax.responses.session.options": ("ConversationOptions", "SessionConfig"),
    "cvllm_jax.responses.config": ("ResponsesConfig",),
    "cvllm_jax.responses.conversations": ("Conversations",),
    "cvllm_jax.responses.creation": ("LocalChains",),
    "cvllm_jax.responses.service": ("ResponseStream", "ResponsesService"),
    "cvllm_jax.responses.store": ("ResponseStore", "StoreLimits"),
    "cvllm_jax.responses.session.session": ("ResponsesSession", "ResponsesSessionBuilder"),
    "cvllm_jax.responses.agent.mcp_tools": ("McpAgentTool",),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from cvllm_jax.responses.agent.functions import function_tool
    from cvllm_jax.responses.agent.loop import run_agent
    from cvllm_jax.responses.agent.mcp_tools import McpAgentTool
    from cvllm_jax.responses.agent.types import (
        AgentEnded,
        AgentEnding,
        AgentEvent,
        AgentTask,
        AgentTool,
        Approval,
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
    from cvllm_jax.responses.config import ResponsesConfig
    from cvllm_jax.responses.conversations import Conversations
    from cvllm_jax.responses.creation import LocalChains
    from cvllm_jax.responses.service import ResponsesService, ResponseStream
    from cvllm_jax.responses.session.conversation import (
        ConversationResult,
        ConversationStep,
        ConversationStream,
        ToolCallResult,
    )
    from cvllm_jax.responses.session.options import ConversationOptions, SessionConfig
    from cvllm_jax.responses.session.session import ResponsesSession, ResponsesSessionBuilder
    from cvllm_jax.responses.store import ResponseStore, StoreLimits

__all__ = [
    "AgentEnded",
    "AgentEnding",
    "AgentEvent",
    "AgentTask",
    "AgentTool",
    "Approval",
    "CallArguments",
    "CallStarted",
    "ConversationOptions",
    "ConversationResult",
    "ConversationStep",
    "ConversationStream",
    "Conversations",
    "LocalChains",
    "McpAgentTool",
    "ReasoningPiece",
    "ResponseStore",
    "ResponseStream",
    "ResponsesConfig",
    "ResponsesService",
    "ResponsesSession",
    "ResponsesSessionBuilder",
    "SessionConfig",
    "StoreLimits",
    "TextPiece",
    "ToolCallResult",
    "ToolEnded",
    "ToolOutcome",
    "ToolStarted",
    "TurnEnded",
    "TurnStarted",
    "function_tool",
    "run_agent",
]


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'cvllm_jax.responses' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
