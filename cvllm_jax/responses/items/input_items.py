"""Input items as they are stored and listed: each with an id, a status and its content in parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cvllm_jax.responses.items.ids import new_id
from cvllm_jax.responses.types import InputText, Item, MessageItem, OutputText

__all__ = ["identified"]

_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "mcp_list_tools": "mcpl",
    "mcp_call": "mcp",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
    "compaction": "cmp",
    "item_reference": "ref",
}


def identified(items: Iterable[Item]) -> list[Item]:
    """Copies of ``items`` with what clients may leave out."""
    return [_identified(item) for item in items]


def _identified(item: Item) -> Item:
    fields: dict[str, Any] = {}
    if not item.id:
        fields["id"] = new_id(_PREFIXES[item.type])
    if "status" in type(item).model_fields and getattr(item, "status", None) is None:
        fields["status"] = "completed"
    if isinstance(item, MessageItem) and isinstance(item.content, str):
        part = OutputText if item.role == "assistant" else InputText
        fields["content"] = [part(text=item.content)]
    return item.model_copy(update=fields)
