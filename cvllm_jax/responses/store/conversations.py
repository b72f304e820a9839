"""Conversations: named lists of items that responses read and add to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cvllm_jax.responses.store.access import Access, Record
from cvllm_jax.responses.store.accounting import check_size
from cvllm_jax.responses.store.encoding import check_id, from_json, to_json
from cvllm_jax.responses.store.errors import (
    ConversationLockedError,
    ItemNotFoundError,
)
from cvllm_jax.responses.store.items import (
    append_items,
    check_new_ids,
    encode_items,
    read_items,
    read_page,
    size_of,
)
from cvllm_jax.responses.store.records import ItemPage, JsonObject, Order, StoredConversation
from cvllm_jax.responses.store.schema import ItemList, RecordKind, RecordState, items, records
from cvllm_jax.responses.store.whole import whole

__all__ = ["Conversations"]


class Conversations:
    """The conversations of a store: ``store.conversations``.

    Every method may raise StoreUnavailableError, and ConversationNotFoundError where it names a conversation.
    Those that change its items raise ConversationLockedError while a response uses it.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._database = access.database

    @whole
    async def create(
        self, conversation_id: str, *, metadata: JsonObject | None = None, items: Sequence[JsonObject] = ()
    ) -> StoredConversation:
        """A new conversation. Every item has an ``id`` of its own.

        Raises:
            DuplicateIdError: the id is taken, or two items have the same.
            StoreValueError, StoreLimitError: it cannot be stored.
        """
        check_id(conversation_id)
        body, encoded = to_json(metadata or {}), encode_items(items)
        size = len(body) + size_of(encoded)
        check_size(size, self._access.limits)
        async with self._database.write() as connection:
            record = await self._access.add(
                connection, RecordKind.CONVERSATION, id=conversation_id, state=RecordState.IDLE, bytes=size, body=body
            )
            await check_new_ids(connection, record, [item.id for item in encoded])
            await append_items(connection, record, ItemList.CONVERSATION, encoded)
            await self._access.count(connection, conversations=1, size=size)
        return await self.retrieve(conversation_id)

    @whole
    async def retrieve(self, conversation_id: str) -> StoredConversation:
        async with self._database.read() as connection:
            found = await self._access.find(connection, RecordKind.CONVERSATION, conversation_id)
            query = select(records.c.created_at, records.c.body).where(records.c.seq == found.seq)
            row = (await connection.execute(query)).one()
        return StoredConversation(id=conversation_id, created_at=int(row.created_at), metadata=from_json(row.body))

    @whole
    async def update(self, conversation_id: str, metadata: JsonObject) -> StoredConversation:
        """Replace its metadata; also while a response uses it."""
        body = to_json(metadata)
        async with self._database.write() as connection:
            row = await self._access.find(connection, RecordKind.CONVERSATION, conversation_id, lock=True)
            growth = len(body) - row.body_bytes
            await self._access.resize(connection, row, growth, body=body, used_at=self._access.clock())
            await self._access.count(connection, size=growth)
        return await self.retrieve(conversation_id)

    @whole
    async def delete(self, conversation_id: str) -> None:
        async with self._database.write() as connection:
            row = await self._unlocked(connection, conversation_id)
            await self._access.remove(connection, RecordKind.CONVERSATION, row)

    @whole
    async def add_items(self, conversation_id: str, items: Sequence[JsonObject]) -> None:
        """Add items at its end, all or none.

        Raises:
            DuplicateIdError: an item has the id of another one.
            StoreValueError, StoreLimitError: they cannot be stored.
        """
        encoded = encode_items(items)
        async with self._database.write() as connection:
            row = await self._unlocked(connection, conversation_id)
            growth = await self._access.extend_conversation(connection, row, encoded)
            await self._access.count(connection, size=growth)

    @whole
    async def items(
        self,
        conversation_id: str,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int = 20,
        order: Order = "desc",
    ) -> ItemPage:
        """A page of its items, between two others.

        Raises:
            ItemNotFoundError: ``after`` or ``before`` is not among them.
        """
        async with self._database.read() as connection:
            record = (await self._access.find(connection, RecordKind.CONVERSATION, conversation_id)).seq
            return await read_page(
                connection, record, ItemList.CONVERSATION, after=after, before=before, limit=limit, order=order
            )

    @whole
    async def all_items(self, conversation_id: str) -> list[JsonObject]:
        """All its items, in order."""
        async with self._database.read() as connection:
            record = (await self._access.find(connection, RecordKind.CONVERSATION, conversation_id)).seq
            return await read_items(connection, record, ItemList.CONVERSATION)

    @whole
    async def item(self, conversation_id: str, item_id: str) -> JsonObject:
        """One of its items.

        Raises:
            ItemNotFoundError: it has none with this id.
        """
        async with self._database.read() as connection:
            record = (await self._access.find(connection, RecordKind.CONVERSATION, conversation_id)).seq
            body = (await connection.execute(select(items.c.body).where(*_item(record, item_id)))).scalar()
        if body is None:
            raise ItemNotFoundError(item_id)
        value: JsonObject = from_json(body)
        return value

    @whole
    async def delete_item(self, conversation_id: str, item_id: str) -> None:
        """Delete one of its items.

        Raises:
            ItemNotFoundError: it has none with this id.
        """
        async with self._database.write() as connection:
            row = await self._unlocked(connection, conversation_id)
            query = select(func.length(items.c.body)).where(*_item(row.seq, item_id))
            size = (await connection.execute(query)).scalar()
            if size is None:
                raise ItemNotFoundError(item_id)
            await connection.execute(delete(items).where(*_item(row.seq, item_id)))
            await self._access.resize(connection, row, -size, used_at=self._access.clock())
            await self._access.count(connection, size=-size)

    @whole
    async def lock(self, conversation_id: str, response_id: str) -> None:
        """Let one response use a conversation until it ends; its process ending ends it, however that ends.

        Creating a response with this conversation does it too; locking before makes sure that what was read of the
        conversation is still all of it.

        Raises:
            ConversationLockedError: another response uses it.
        """
        async with self._database.write() as connection:
            await self._access.lock_conversation(connection, conversation_id, response_id)

    @whole
    async def unlock(self, conversation_id: str, response_id: str, items: Sequence[JsonObject] = ()) -> None:
        """Add what came of a response that is not stored, and let others use the conversation.

        Finishing a response that was created with this conversation does it too.

        Raises:
            ConversationLockedError: this response does not use it.
        """
        encoded = encode_items(items)
        async with self._database.write() as connection:
            row = await self._access.find(connection, RecordKind.CONVERSATION, conversation_id, lock=True)
            if row.owner != self._access.owner or row.holder != response_id:
                raise ConversationLockedError(conversation_id)
            growth = await self._access.extend_conversation(connection, row, encoded, unlock=True)
            await self._access.count(connection, size=growth)

    async def _unlocked(self, connection: AsyncConnection, id_: str) -> Record:
        row = await self._access.find(connection, RecordKind.CONVERSATION, id_, lock=True)
        if await self._access.is_used(row):
            raise ConversationLockedError(id_)
        return row


def _item(record: int, item_id: str) -> tuple[Any, Any, Any]:
    return items.c.record == record, items.c.list == ItemList.CONVERSATION, items.c.id == item_id
