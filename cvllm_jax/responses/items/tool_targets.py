"""What the calls of an agent's tools are to the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cvllm_jax.errors import McpToolExecutionError
from cvllm_jax.openai.types import FunctionCall, ToolCall

__all__ = ["ClientTarget", "HeldCall", "McpTarget", "ToolTarget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTarget:
    """The client's tool that a name stands for."""

    kind: Literal["function", "custom"]
    name: str
    namespace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class McpTarget:
    """The MCP tool that a name stands for."""

    server_label: str
    name: str
    """As its server calls it."""
    asks: bool = False
    """Calls wait for approval."""


#: What calls of a tool are to the client. "function" and "custom" are its own tools under the names that they have.
type ToolTarget = Literal["function", "custom"] | ClientTarget | McpTarget


@dataclass(slots=True)
class HeldCall:
    """A call of which the client is told when it is whole: to approve, or not at all if there is no such tool."""

    id: str
    name: str
    target: McpTarget | None
    arguments: str = ""

    def add(self, text: str) -> None:
        self.arguments += text

    @property
    def can_run(self) -> bool:
        """Whether its arguments are an object. If not, the agent refuses it, and there is nothing to approve."""
        try:
            ToolCall(id=self.id, function=FunctionCall(name=self.name, arguments=self.arguments)).to_mcp_call()
        except McpToolExecutionError:
            return False
        return True
