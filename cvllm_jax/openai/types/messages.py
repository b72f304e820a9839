"""Messages and the tool calls in them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from cvllm_jax.errors import McpToolExecutionError
from cvllm_jax.openai.mcp_types import McpToolCall, mcp_result_text
from cvllm_jax.openai.types.fields import OPEN, optional

__all__ = ["ContentPart", "FunctionCall", "Message", "ToolCall"]


class ContentPart(BaseModel):
    """One part of a message's content. Text parts only, for text-only models."""

    model_config = OPEN

    type: str
    text: str | None = optional()
    refusal: str | None = optional()


class FunctionCall(BaseModel):
    """Which function a model calls and with what."""

    model_config = OPEN

    name: str
    arguments: str
    """JSON text, as the model wrote it: without a grammar it may be malformed or cut."""


class ToolCall(BaseModel):
    """One call that a model made."""

    model_config = OPEN

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    def to_mcp_call(self) -> McpToolCall:
        """The call as an MCP server takes it; raises McpToolExecutionError if its arguments are no JSON object."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise McpToolExecutionError(f"the arguments of {self.function.name!r} are no JSON: {error}") from None
        if not isinstance(arguments, dict):
            raise McpToolExecutionError(f"the arguments of {self.function.name!r} are no JSON object")
        return McpToolCall(name=self.function.name, arguments=arguments)


class Message(BaseModel):
    """One turn of a conversation, in requests and in answers.

    Keys that are not listed here are kept and given to the chat template.
    """

    model_config = OPEN

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Field(min_length=1)] | None = None
    name: str | None = optional()
    refusal: str | None = None
    reasoning_content: str | None = optional()
    """What the model thought before it answered."""
    tool_calls: list[ToolCall] | None = optional()
    tool_call_id: str | None = optional()
    """Of a tool's message: the call that it answers."""

    @classmethod
    def user(cls, content: str) -> Self:
        """What the person says."""
        return cls(role="user", content=content)

    @classmethod
    def system(cls, content: str) -> Self:
        """Instructions that stand before the conversation."""
        return cls(role="system", content=content)

    @classmethod
    def developer(cls, content: str) -> Self:
        """Instructions from the application; given to the template as a system message."""
        return cls(role="developer", content=content)

    @classmethod
    def assistant(cls, content: str | None) -> Self:
        """What the model answered, to go on from it."""
        return cls(role="assistant", content=content)

    @classmethod
    def assistant_with_tool_calls(cls, tool_calls: Iterable[ToolCall], content: str | None = None) -> Self:
        """The assistant's turn that the tool messages after it answer."""
        return cls(role="assistant", content=content, tool_calls=list(tool_calls))

    @classmethod
    def tool(cls, tool_call_id: str, content: str) -> Self:
        """What a tool answered to the call ``tool_call_id``."""
        return cls(role="tool", content=content, tool_call_id=tool_call_id)

    @classmethod
    def tool_with_name(cls, tool_call_id: str, content: str, name: str) -> Self:
        """As :meth:`tool`, with the function's name, which some chat templates print."""
        return cls(role="tool", content=content, tool_call_id=tool_call_id, name=name)

    @classmethod
    def from_mcp_result(cls, tool_call_id: str, result: Any, name: str | None = None) -> Self:
        """A tool message from an :class:`McpToolResult` or the MCP SDK's own result."""
        return cls(role="tool", content=mcp_result_text(result), tool_call_id=tool_call_id, name=name)
