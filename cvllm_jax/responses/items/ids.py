"""Ids of output items, which say what belongs together when they come back.

Clients may send items back instead of naming a stored response. Items alone do not tell which calls the model made at
once, nor the ids that its chat template needs for the calls of MCP tools: so the items' ids do.
"""

from __future__ import annotations

import hashlib
import re
import secrets

__all__ = ["ItemIds", "call_id_of", "new_id", "turn_of"]

_FORM = re.compile(r"[a-z]+_(?P<turn>[0-9a-f]{28})[0-9a-f]{4,8}(?:_(?P<call>[A-Za-z0-9_-]{1,64}))?")
_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def new_id(prefix: str) -> str:
    """An id that was never given before, such as ``resp_`` with 48 hexadecimal digits."""
    return f"{prefix}_{secrets.token_hex(24)}"


class ItemIds:
    """Makes the ids of one response's items."""

    def __init__(self) -> None:
        self._response = secrets.token_hex(12)
        self._count = 0

    def make(self, prefix: str, turn: int, call_id: str | None = None) -> str:
        """A new id for an item of turn ``turn``, which holds ``call_id`` if there is one."""
        self._count += 1
        call = f"_{call_id}" if call_id is not None and _CALL_ID.fullmatch(call_id) else ""
        return f"{prefix}_{self._response}{turn % 0x10000:04x}{self._count:04x}{call}"


def turn_of(item_id: str | None) -> str | None:
    """The same text for all items that one turn of a model made; None for ids that were not made here."""
    match = _FORM.fullmatch(item_id or "")
    return match["turn"] if match else None


def call_id_of(item_id: str) -> str:
    """The call id in an item's id; for other ids, one that every chat template takes (Mistral's: nine characters)."""
    match = _FORM.fullmatch(item_id)
    return match["call"] if match and match["call"] else hashlib.sha256(item_id.encode()).hexdigest()[:9]
