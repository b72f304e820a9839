"""Agents: conversations whose tools really run, and OpenAI's Responses API.

Importing this package is cheap: each name loads what it needs when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "cvllm_jax.responses.agent": ("run_agent",),
    "cvllm_jax.responses.agent_types": (
        "AgentEnded", "AgentEnding", "AgentEvent", "AgentTask", "AgentTool", "Approval", "CallArguments",
        "CallStarted", "ReasoningPiece", "TextPiece", "ToolEnded", "ToolOutcome", "ToolStarted", "TurnEnded",
        "TurnStarted",
    ),
    "cvllm_jax.responses.conversation": (
        "ConversationResult", "ConversationStep", "ConversationStream", "ToolCallResult",
    ),
    "cvllm_jax.responses.functions": ("function_tool",),
    "cvllm_jax.responses.options": ("ConversationOptions", "SessionConfig"),
    "cvllm_jax.responses.session": ("ResponsesSession", "ResponsesSessionBuilder"),
    "cvllm_jax.responses.tools": ("McpAgentTool",),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from cvllm_jax.responses.agent import run_agent
    from cvllm_jax.responses.agent_types import (
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
    from cvllm_jax.responses.conversation import (
        ConversationResult,
        ConversationStep,
        ConversationStream,
        ToolCallResult,
    )
    from cvllm_jax.responses.functions import function_tool
    from cvllm_jax.responses.options import ConversationOptions, SessionConfig
    from cvllm_jax.responses.session import ResponsesSession, ResponsesSessionBuilder
    from cvllm_jax.responses.tools import McpAgentTool

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
    "McpAgentTool",
    "ReasoningPiece",
    "ResponsesSession",
    "ResponsesSessionBuilder",
    "SessionConfig",
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
