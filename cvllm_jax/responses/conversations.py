"""OpenAI's Conversations API without HTTP: lists of items that responses read and add to."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.types.fields import OPEN
from cvllm_jax.openai.unsupported import log_unknown_names
from cvllm_jax.openai.validation import describe_error
from cvllm_jax.responses.errors import NotFoundError, api_errors
from cvllm_jax.responses.items.ids import new_id
from cvllm_jax.responses.items.inclusion import check_include, including
from cvllm_jax.responses.items.input_items import identified
from cvllm_jax.responses.store import ItemPage, Order, StoredConversation
from cvllm_jax.responses.types import Conversation, Deleted, Item, ItemList, ItemReference, Metadata

if TYPE_CHECKING:
    from cvllm_jax.responses.store import ResponseStore

__all__ = ["ConversationRequest", "Conversations", "ItemsRequest"]

_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


class _Body(BaseModel):
    model_config = OPEN

    @classmethod
    def parse(cls, data: Any) -> Self:
        """A decoded JSON body; raises RequestError that names the field at fault."""
        try:
            request = cls.model_validate(data)
        except ValidationError as error:
            raise describe_error(error, data) from None
        log_unknown_names(request.model_extra or ())
        return request


class ConversationRequest(_Body):
    """A conversation to create, or to change."""

    metadata: Metadata | None = None
    items: Annotated[list[Item], Field(max_length=20)] | None = None
    """Of a new one."""


class ItemsRequest(_Body):
    """Items to add."""

    items: Annotated[list[Item], Field(min_length=1, max_length=20)]


class Conversations:
    """The conversations of a store, for any number of clients.

    Raises RequestError, NotFoundError among them, and StoreUnavailableError where the store fails.
    """

    def __init__(self, store: ResponseStore) -> None:
        self._conversations = store.conversations

    async def create(self, request: ConversationRequest) -> Conversation:
        """A new conversation, with the items that the request brings."""
        items = _new(request.items or [])
        with api_errors():
            stored = await self._conversations.create(
                new_id("conv"), metadata=request.metadata, items=[item.model_dump(mode="json") for item in items]
            )
        return _conversation(stored)

    async def retrieve(self, conversation_id: str) -> Conversation:
        """A stored conversation without its items."""
        with api_errors():
            return _conversation(await self._conversations.retrieve(conversation_id))

    async def update(self, conversation_id: str, request: ConversationRequest) -> Conversation:
        """Replace its metadata."""
        if request.metadata is None:
            raise RequestError(
                "Missing required parameter: 'metadata'.", param="metadata", code="missing_required_parameter"
            )
        with api_errors():
            return _conversation(await self._conversations.update(conversation_id, request.metadata))

    async def delete(self, conversation_id: str) -> Deleted:
        """Delete it with its items. Responses that were part of it stay."""
        with api_errors():
            await self._conversations.delete(conversation_id)
        return Deleted(id=conversation_id, object="conversation.deleted")

    async def items(
        self,
        conversation_id: str,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int = 20,
        order: Order = "desc",
        include: Collection[str] = (),
    ) -> ItemList:
        """A page of its items."""
        check_include(include)
        with api_errors():
            page = await self._conversations.items(
                conversation_id, after=after, before=before, limit=limit, order=order
            )
        return item_list(page, include)

    async def add(self, conversation_id: str, request: ItemsRequest, include: Collection[str] = ()) -> ItemList:
        """Add items at its end."""
        check_include(include)
        items = _new(request.items)
        with api_errors():
            await self._conversations.add_items(conversation_id, [item.model_dump(mode="json") for item in items])
        return ItemList.of(including(items, include))

    async def item(self, conversation_id: str, item_id: str, include: Collection[str] = ()) -> Item:
        """One item of a conversation."""
        check_include(include)
        with api_errors():
            stored = await self._conversations.item(conversation_id, item_id)
        return including(_ITEMS.validate_python([stored]), include)[0]

    async def delete_item(self, conversation_id: str, item_id: str) -> Conversation:
        """Delete one item; gives the conversation that is left."""
        with api_errors():
            await self._conversations.delete_item(conversation_id, item_id)
        return await self.retrieve(conversation_id)


def item_list(page: ItemPage, include: Collection[str] = ()) -> ItemList:
    return ItemList.of(including(_ITEMS.validate_python(list(page.items)), include), has_more=page.has_more)


def _new(items: list[Item]) -> list[Item]:
    for item in items:
        if isinstance(item, ItemReference):
            raise NotFoundError(f"Item with id '{item.id[:100]}' not found.", param="items")
    return identified(items)


def _conversation(stored: StoredConversation) -> Conversation:
    return Conversation(id=stored.id, created_at=stored.created_at, metadata=dict(stored.metadata))
