"""What MCP servers offer, are asked and answer, as plain data.

The conversions between OpenAI's types and MCP take these or the MCP SDK's own objects, whose attributes have the same
names, and dictionaries as they are on the wire.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["McpTool", "McpToolCall", "McpToolResult", "mcp_field", "mcp_result_text"]

_WIRE_NAMES = {
    "input_schema": "inputSchema",
    "is_error": "isError",
    "structured_content": "structuredContent",
    "mime_type": "mimeType",
}
_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class McpTool:
    """A function that an MCP server offers: its name, what it is for, and the schema of its arguments."""

    name: str
    description: str | None = None
    input_schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    """JSON schema of the arguments."""
    annotations: Mapping[str, Any] | None = None
    """Hints such as ``readOnlyHint``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McpToolCall:
    """What ``McpClient.call_tool`` sends: the function's name, and arguments as a mapping."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class McpToolResult:
    """What came back from a function of an MCP server; ``is_error`` is set where that failed."""

    content: Sequence[Any] = ()
    """Blocks such as ``{"type": "text", "text": "..."}``, as dictionaries or as the SDK's objects."""
    structured_content: Any = None
    """The result as JSON, from tools that declare an output schema."""
    is_error: bool = False
    """The tool ran into an error, which ``content`` tells of."""

    @property
    def text(self) -> str:
        """The whole result as text, as a model reads it."""
        return mcp_result_text(self)


def mcp_field(value: Any, name: str) -> Any:
    """A field of an object or of a dictionary, by its Python name; None where it has none."""
    for known in (name, _WIRE_NAMES.get(name, name)):
        found = value.get(known, _ABSENT) if isinstance(value, Mapping) else getattr(value, known, _ABSENT)
        if found is not _ABSENT:
            return found
    return None


def mcp_result_text(result: Any) -> str:
    """A tool's result as text: its blocks, one a line, or its structured content where it has no blocks.

    That of a tool that ran into an error begins with "Error: ", which a model would not know otherwise.
    """
    blocks = mcp_field(result, "content") or ()
    structured = mcp_field(result, "structured_content")
    if not blocks and structured is not None:
        text = json.dumps(structured, ensure_ascii=False)
    else:
        text = "\n".join(map(_block_text, blocks))
    if mcp_field(result, "is_error"):
        return f"Error: {text or 'the tool does not say which'}"
    return text


def _block_text(block: Any) -> str:
    """What can be read of one block. Of one that is no text, its kind: the model learns that there was something."""
    kind = mcp_field(block, "type")
    if kind == "text":
        return str(mcp_field(block, "text") or "")
    if kind == "resource":
        resource = mcp_field(block, "resource")
        text = mcp_field(resource, "text")
        return str(text) if text is not None else f"[resource {mcp_field(resource, 'uri')}, which is no text]"
    if kind == "resource_link":
        return f"[resource {mcp_field(block, 'uri')}]"
    return f"[{kind} of type {mcp_field(block, 'mime_type')}, which is no text]"
