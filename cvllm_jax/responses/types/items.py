"""What conversations consist of: the items of a request's input and of a response's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from cvllm_jax.openai.mcp_types import McpTool
from cvllm_jax.openai.types.fields import OPEN, STRICT, optional
from cvllm_jax.responses.types.content import ContentPart, ReasoningText, SummaryText

__all__ = [
    "Compaction",
    "CustomToolCall",
    "CustomToolCallOutput",
    "FunctionCall",
    "FunctionCallOutput",
    "Item",
    "ItemReference",
    "ItemStatus",
    "ListedTool",
    "McpApprovalRequest",
    "McpApprovalResponse",
    "McpCall",
    "McpListTools",
    "MessageItem",
    "MessagePhase",
    "Reasoning",
]

type ItemStatus = Literal["in_progress", "completed", "incomplete"]
type MessagePhase = Literal["commentary", "final_answer"]


class MessageItem(BaseModel):
    """A message, of either side. In a request ``type`` may be missing and content a string."""

    model_config = OPEN

    id: str | None = optional()
    type: Literal["message"] = "message"
    status: ItemStatus | None = optional()
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]
    phase: MessagePhase | None = optional()
    """Of an assistant's message: whether it is the answer, or told on the way to it."""


class Reasoning(BaseModel):
    """What the model thought before it went on."""

    model_config = OPEN

    id: str | None = optional()
    type: Literal["reasoning"] = "reasoning"
    status: ItemStatus | None = optional()
    summary: Annotated[list[SummaryText], BeforeValidator(lambda value: [] if value is None else value)] = []
    """The same text once more, where the client asked for no reasoning: see :class:`~cvllm_jax.responses.Writer`."""
    content: list[ReasoningText] | None = optional()
    encrypted_content: str | None = optional()
    """For clients that keep the conversation themselves: see :mod:`cvllm_jax.responses.items.opaque`."""


class FunctionCall(BaseModel):
    """A call of a function that the client runs."""

    model_config = OPEN

    id: str | None = optional()
    type: Literal["function_call"] = "function_call"
    status: ItemStatus | None = optional()
    call_id: Annotated[str, Field(min_length=1)]
    namespace: str | None = optional()
    """That of the function, if it has one."""
    name: str
    arguments: str
    """JSON text, as the model wrote it."""


class FunctionCallOutput(BaseModel):
    model_config = OPEN

    id: str | None = optional()
    type: Literal["function_call_output"] = "function_call_output"
    status: ItemStatus | None = optional()
    call_id: Annotated[str, Field(min_length=1)]
    output: str | list[ContentPart]


class CustomToolCall(BaseModel):
    """A call of a tool whose input is plain text."""

    model_config = OPEN

    id: str | None = optional()
    type: Literal["custom_tool_call"] = "custom_tool_call"
    status: ItemStatus | None = optional()
    call_id: Annotated[str, Field(min_length=1)]
    namespace: str | None = optional()
    name: str
    input: str


class CustomToolCallOutput(BaseModel):
    model_config = OPEN

    id: str | None = optional()
    type: Literal["custom_tool_call_output"] = "custom_tool_call_output"
    status: ItemStatus | None = optional()
    call_id: Annotated[str, Field(min_length=1)]
    output: str | list[ContentPart]


class ListedTool(BaseModel):
    """A tool of an MCP server. What it does not have is left out: some clients refuse null there."""

    model_config = STRICT

    name: str
    description: str | None = optional()
    input_schema: Any = {"type": "object"}
    annotations: dict[str, Any] | None = optional()

    @classmethod
    def of(cls, tool: McpTool) -> Self:
        return cls(
            name=tool.name,
            description=tool.description,
            input_schema=dict(tool.input_schema),
            annotations=None if tool.annotations is None else dict(tool.annotations),
        )

    def mcp_tool(self) -> McpTool:
        schema = self.input_schema if isinstance(self.input_schema, dict) else {"type": "object"}
        return McpTool(name=self.name, description=self.description, input_schema=schema, annotations=self.annotations)


class McpListTools(BaseModel):
    """The tools of an MCP server, or why there are none."""

    model_config = OPEN

    id: str | None = optional()
    type: Literal["mcp_list_tools"] = "mcp_list_tools"
    server_label: str
    tools: list[ListedTool]
    error: str | None = optional()


class McpCall(BaseModel):
    """A call of an MCP server's tool, which this server runs, and what came of it."""

    model_config = OPEN

    id: str | None = optional()
    type: Literal["mcp_call"] = "mcp_call"
    status: Literal["in_progress", "calling", "completed", "incomplete", "failed"] | None = optional()
    server_label: str
    name: str
    arguments: str
    output: str | None = None
    error: dict[str, Any] | str | None = None
    approval_request_id: str | None = None


class McpApprovalRequest(BaseModel):
    """A call that runs only when the client agrees."""

    model_config = OPEN

    id: str
    type: Literal["mcp_approval_request"] = "mcp_approval_request"
    server_label: str
    name: str
    arguments: str


class McpApprovalResponse(BaseModel):
    model_config = OPEN

    id: str | None = optional()
    type: Literal["mcp_approval_response"] = "mcp_approval_response"
    approval_request_id: str
    approve: bool
    reason: str | None = optional()


class Compaction(BaseModel):
    """A part of the conversation in short: see :mod:`cvllm_jax.responses.items.opaque`."""

    model_config = OPEN

    id: str | None = optional()
    type: Literal["compaction"] = "compaction"
    encrypted_content: str


class ItemReference(BaseModel):
    """Stands for a stored item."""

    model_config = STRICT

    type: Annotated[Literal["item_reference"], BeforeValidator(lambda kind: kind or "item_reference")] = (
        "item_reference"
    )
    id: str


def _kind(value: Any) -> str | None:
    """Which item is meant; those that clients send without ``type`` are messages and references."""
    fields = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
    if fields is None:
        return "message"  # it is none, and the error says that it is no object
    kind = fields.get("type")
    if kind is None:
        if "role" in fields:
            return "message"
        return "item_reference" if "id" in fields and fields.keys() <= {"id", "type"} else None
    return str(kind)


type Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[Reasoning, Tag("reasoning")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[CustomToolCall, Tag("custom_tool_call")]
    | Annotated[CustomToolCallOutput, Tag("custom_tool_call_output")]
    | Annotated[McpListTools, Tag("mcp_list_tools")]
    | Annotated[McpCall, Tag("mcp_call")]
    | Annotated[McpApprovalRequest, Tag("mcp_approval_request")]
    | Annotated[McpApprovalResponse, Tag("mcp_approval_response")]
    | Annotated[Compaction, Tag("compaction")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_kind),
]
