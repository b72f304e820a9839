"""What the other routes of the API answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel

from cvllm_jax.openai.types.fields import OPEN, STRICT
from cvllm_jax.responses.types.items import Item
from cvllm_jax.responses.types.request import Metadata
from cvllm_jax.responses.types.response import ResponseUsage

__all__ = ["CompactedResponse", "Conversation", "Deleted", "InputTokens", "ItemList"]


class ItemList(BaseModel):
    """A page of items."""

    model_config = OPEN

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, items: Sequence[Item], *, has_more: bool = False) -> Self:
        return cls(
            data=list(items),
            first_id=items[0].id if items else None,
            last_id=items[-1].id if items else None,
            has_more=has_more,
        )


class Deleted(BaseModel):
    model_config = STRICT

    id: str
    object: Literal["response", "conversation.deleted"] = "response"
    deleted: bool = True


class InputTokens(BaseModel):
    """How many tokens a request's input is."""

    model_config = STRICT

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class CompactedResponse(BaseModel):
    """A conversation in short: items to go on with."""

    model_config = OPEN

    id: str
    object: Literal["response.compaction"] = "response.compaction"
    created_at: int
    output: list[Item]
    usage: ResponseUsage


class Conversation(BaseModel):
    model_config = STRICT

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: Metadata = {}
