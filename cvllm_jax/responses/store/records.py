"""What a store holds, as its callers see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from cvllm_jax.errors import ConfigError, shown

__all__ = ["ItemPage", "JsonObject", "Order", "StoreLimits", "StoreUsage", "StoredConversation", "StoredResponse"]

#: What ``json.loads`` makes of a JSON object.
type JsonObject = Mapping[str, Any]
type Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """How much a store keeps. The oldest go first, never one that is in progress. None: no limit.

    Responses are as old as their creation, conversations as their last change.
    """

    max_responses: int | None = 10_000
    max_conversations: int | None = 10_000
    max_age_secs: float | None = 30 * 24 * 3600.0
    max_bytes: int | None = 4 << 30
    """Of JSON, without what the database adds to it."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None and not value > 0:
                raise ConfigError(f"{entry.name} must be more than 0, not {shown(value)}", param=entry.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUsage:
    """How much a store holds."""

    responses: int
    conversations: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A response as it is stored."""

    id: str
    response: JsonObject
    """Of one whose process ended before it: with status "incomplete" and the reason "interrupted"."""
    settings: JsonObject
    previous_response_id: str | None
    conversation_id: str | None
    active: bool
    """A living process still makes it."""
    interrupted: bool
    """Its process ended before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredConversation:
    """A conversation without its items."""

    id: str
    created_at: int
    """Seconds since 1970."""
    metadata: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemPage:
    """Some items of a list, in the order that was asked for."""

    items: Sequence[JsonObject]
    has_more: bool

    @property
    def first_id(self) -> str | None:
        return self.items[0]["id"] if self.items else None

    @property
    def last_id(self) -> str | None:
        return self.items[-1]["id"] if self.items else None
