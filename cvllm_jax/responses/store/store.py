"""The store of responses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import Self

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cvllm_jax.responses.store.access import Access, Record
from cvllm_jax.responses.store.accounting import check_size, expire, read_totals
from cvllm_jax.responses.store.chain import read_chain
from cvllm_jax.responses.store.conversations import Conversations
from cvllm_jax.responses.store.encoding import check_id, from_json, to_json
from cvllm_jax.responses.store.errors import (
    ConversationNotFoundError,
    PreviousResponseNotFoundError,
    ResponseClosedError,
    ResponseNotFoundError,
    StoreUnavailableError,
)
from cvllm_jax.responses.store.events import encode_events, insert_events, read_events
from cvllm_jax.responses.store.items import (
    append_items,
    check_new_ids,
    encode_items,
    newest_items,
    read_encoded,
    read_page,
    size_of,
)
from cvllm_jax.responses.store.opening import open_database
from cvllm_jax.responses.store.records import ItemPage, JsonObject, Order, StoredResponse, StoreLimits, StoreUsage
from cvllm_jax.responses.store.schema import ItemList, RecordKind, RecordState, records
from cvllm_jax.responses.store.whole import whole

__all__ = ["ResponseStore"]

SWEEP_SECS = 30.0

_log = logging.getLogger(__name__)


class ResponseStore:
    """Responses, their items and events, and conversations, as plain JSON objects.

    A response is created when it starts and finished when it ends; one whose process ended in between reads as
    "incomplete". Any number of processes may open the same store. A store belongs to the event loop that opened it.

    Every method may raise StoreUnavailableError: the storage cannot be reached, read or written. A method that is
    cancelled does its work first: afterwards it is done, or refused, and never both.
    """

    def __init__(self, access: Access) -> None:
        self.conversations = Conversations(access)
        self._access = access
        self._database = access.database
        self._sweeper = asyncio.create_task(self._keep_sweeping())

    @classmethod
    async def open(
        cls,
        target: str | os.PathLike[str],
        limits: StoreLimits | None = None,
        *,
        timeout_secs: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open a store, and make it if it is not there.

        Args:
            target: the path of an SQLite file, ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``, or ``:memory:``.
            limits: how much it keeps.
            timeout_secs: how long to wait for PostgreSQL to answer, or for other processes that write to the file.
            clock: seconds since 1970.

        Raises:
            StoreUnavailableError: it cannot be reached, read or written; the message names it without its password.
            StoreFormatError: it is something else, is damaged, or was written by a newer version.
            ConfigError: an extra is missing, or the URL cannot be read.
        """
        access = Access(
            database=await open_database(target, timeout_secs=timeout_secs),
            limits=limits or StoreLimits(),
            clock=clock,
        )
        store = cls(access)
        try:
            await store.sweep()
        except BaseException:
            await store.aclose()
            raise
        return store

    @whole
    async def aclose(self) -> None:
        """Let go of it. Responses that are still in progress are interrupted."""
        self._sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sweeper
        try:
            async with self._database.write() as connection:
                await self._orphan(connection, {self._access.owner})
        finally:
            await self._database.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @whole
    async def create(
        self,
        response_id: str,
        response: JsonObject,
        *,
        input_items: Sequence[JsonObject] = (),
        settings: JsonObject | None = None,
        previous_response_id: str | None = None,
        conversation_id: str | None = None,
    ) -> None:
        """Store a response that starts. Until it is finished, this process owns it, and nothing evicts it.

        Args:
            response: as it stands, with status "in_progress" or "queued".
            input_items: what this request adds to its chain or conversation; each has an ``id``.
            settings: what the service wants to find again with it.
            conversation_id: is used by nothing else until this response is finished.

        Raises:
            DuplicateIdError: the id is taken, or that of an item, by another one or in the conversation.
            PreviousResponseNotFoundError: there is no such response.
            ConversationNotFoundError, ConversationLockedError: there is none, or another response uses it.
            StoreValueError, StoreLimitError: it cannot be stored.
        """
        check_id(response_id)
        body, settings_body, encoded = to_json(response), to_json(settings or {}), encode_items(input_items)
        size = len(body) + len(settings_body) + size_of(encoded)
        check_size(size, self._access.limits)
        async with self._database.write() as connection:
            parent = None
            if previous_response_id is not None:
                try:
                    parent = (await self._access.find(connection, RecordKind.RESPONSE, previous_response_id)).seq
                except ResponseNotFoundError:
                    raise PreviousResponseNotFoundError(previous_response_id) from None
            if conversation_id is not None:
                conversation = await self._access.lock_conversation(connection, conversation_id, response_id)
                await check_new_ids(connection, conversation.seq, [item.id for item in encoded])
            record = await self._access.add(
                connection,
                RecordKind.RESPONSE,
                id=response_id,
                parent=parent,
                previous=previous_response_id,
                conversation=conversation_id,
                state=RecordState.ACTIVE,
                owner=self._access.owner,
                bytes=size,
                body=body,
                settings=settings_body,
            )
            await append_items(connection, record, ItemList.INPUT, encoded)
            await self._access.count(connection, responses=1, size=size)

    @whole
    async def update(self, response_id: str, response: JsonObject) -> None:
        """Replace a response that is in progress, say when it is no longer queued.

        Raises:
            ResponseNotFoundError, ResponseClosedError: it is gone, or has ended.
            StoreValueError, StoreLimitError: it cannot be stored.
        """
        body = to_json(response)
        async with self._database.write() as connection:
            row = await self._own(connection, response_id)
            growth = await self._access.resize(connection, row, len(body) - row.body_bytes, body=body)
            await self._access.count(connection, size=growth)

    @whole
    async def finish(self, response_id: str, response: JsonObject, output_items: Sequence[JsonObject] = ()) -> None:
        """Store what came of a response, however it ended. Its conversation gets its input and output.

        Raises:
            ResponseNotFoundError: it was deleted meanwhile; its conversation is still to be unlocked.
            ResponseClosedError: it was finished already.
            DuplicateIdError: the id of an item is taken, by another one or in the conversation.
            StoreValueError, StoreLimitError: it cannot be stored; it is still in progress.
        """
        body, encoded = to_json(response), encode_items(output_items)
        async with self._database.write() as connection:
            row = await self._own(connection, response_id)
            growth = len(body) - row.body_bytes + size_of(encoded)
            await self._access.resize(connection, row, growth, body=body, state=RecordState.IDLE)
            await append_items(connection, row.seq, ItemList.OUTPUT, encoded)
            if row.conversation is not None:
                growth += await self._extend_conversation(connection, row.conversation, response_id, row.seq)
            await self._access.count(connection, size=growth)

    @whole
    async def retrieve(self, response_id: str) -> StoredResponse:
        """A response as it stands.

        Raises:
            ResponseNotFoundError: there is none.
        """
        async with self._database.read() as connection:
            found = await self._access.find(connection, RecordKind.RESPONSE, response_id)
            row = (await connection.execute(select(records).where(records.c.seq == found.seq))).one()
        response = from_json(row.body)
        if row.state == RecordState.ORPHANED:
            response |= {"status": "incomplete", "incomplete_details": {"reason": "interrupted"}}
        return StoredResponse(
            id=row.id,
            response=response,
            settings=from_json(row.settings),
            previous_response_id=row.previous,
            conversation_id=row.conversation,
            active=row.state == RecordState.ACTIVE,
            interrupted=row.state == RecordState.ORPHANED,
        )

    @whole
    async def delete(self, response_id: str) -> None:
        """Delete a response with its items and events. What went on from it has lost its chain.

        Raises:
            ResponseNotFoundError: there is none.
        """
        async with self._database.write() as connection:
            row = await self._access.find(connection, RecordKind.RESPONSE, response_id, lock=True)
            await self._access.remove(connection, RecordKind.RESPONSE, row)

    @whole
    async def input_items(
        self,
        response_id: str,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int = 20,
        order: Order = "desc",
    ) -> ItemPage:
        """A page of its own input, between two other items.

        Raises:
            ResponseNotFoundError: there is none.
            ItemNotFoundError: ``after`` or ``before`` is not in its input.
        """
        async with self._database.read() as connection:
            record = (await self._access.find(connection, RecordKind.RESPONSE, response_id)).seq
            return await read_page(
                connection, record, ItemList.INPUT, after=after, before=before, limit=limit, order=order
            )

    @whole
    async def find_items(self, ids: Collection[str]) -> dict[str, JsonObject]:
        """Items of any responses and conversations, by id; of several with one id, one of the newest.

        Ids that no item has are left out.

        Raises:
            ItemsTooLargeError: they hold more than 256 MiB.
        """
        async with self._database.read() as connection:
            return await newest_items(connection, ids)

    @whole
    async def chain(self, response_id: str) -> list[JsonObject]:
        """Input and output of a response and of all that it went on from, in order: what the next one reads first.

        Raises:
            PreviousResponseNotFoundError: it, or one that it went on from, is gone.
            ResponseActiveError: it, or one that it went on from, is in progress.
            ChainTooLongError: they are more than 10,000, or hold more than 256 MiB.
        """
        async with self._database.read() as connection:
            try:
                newest = (await self._access.find(connection, RecordKind.RESPONSE, response_id)).seq
            except ResponseNotFoundError:
                raise PreviousResponseNotFoundError(response_id) from None
            return await read_chain(connection, newest)

    @whole
    async def append_events(self, response_id: str, batch: Sequence[JsonObject]) -> None:
        """Store the next events of a response that is in progress. Larger batches cost less.

        Raises:
            ResponseNotFoundError, ResponseClosedError: it is gone, or has ended.
            StoreValueError: the batch is empty, or ``sequence_number`` does not grow from event to event.
            StoreLimitError: it cannot be stored.
        """
        encoded = encode_events(batch)
        async with self._database.write() as connection:
            row = await self._own(connection, response_id)
            await insert_events(connection, row.seq, encoded)
            growth = await self._access.resize(connection, row, len(encoded.body))
            await self._access.count(connection, size=growth)

    @whole
    async def events_after(self, response_id: str, sequence_number: int, *, limit: int = 1000) -> list[JsonObject]:
        """Its stored events with a greater sequence number, in order, up to ``limit``; -1 for all.

        Raises:
            ResponseNotFoundError: there is no such response.
        """
        async with self._database.read() as connection:
            record = (await self._access.find(connection, RecordKind.RESPONSE, response_id)).seq
            return await read_events(connection, record, sequence_number, limit)

    @whole
    async def usage(self) -> StoreUsage:
        """How much is stored."""
        async with self._database.read() as connection:
            return await read_totals(connection)

    @whole
    async def sweep(self) -> None:
        """Mark what ended processes left in progress, and delete what is too old. Happens by itself every 30 s."""
        owner = self._access.owner
        with self._database.failures():
            await self._database.owner.hold()
            traces = self._database.owner.traces()
        async with self._database.write() as connection:
            await self._database.alone(connection)
            active = select(records.c.owner).where(records.c.state == RecordState.ACTIVE).distinct()
            others = {*(await connection.execute(active)).scalars(), *traces} - {owner}
            await self._orphan(connection, await self._database.owner.dead(others))
            await expire(connection, self._access.limits, self._access.clock())
            await self._access.count(connection, size=0)

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECS)
            try:
                await self.sweep()
            except StoreUnavailableError as error:
                _log.warning("the store is not swept: %s", error)

    async def _orphan(self, connection: AsyncConnection, owners: Collection[int]) -> None:
        if owners:
            await connection.execute(
                update(records)
                .where(records.c.state == RecordState.ACTIVE, records.c.owner.in_(owners))
                .values(state=RecordState.ORPHANED)
            )

    async def _own(self, connection: AsyncConnection, response_id: str) -> Record:
        """A response that this process makes, locked for this transaction."""
        row = await self._access.find(connection, RecordKind.RESPONSE, response_id, lock=True)
        # one that was taken for dead, say after its server's connections broke, may still end well
        if row.owner != self._access.owner or row.state == RecordState.IDLE:
            raise ResponseClosedError(response_id)
        return row

    async def _extend_conversation(self, connection: AsyncConnection, id_: str, response_id: str, record: int) -> int:
        """Add input and output of a response to its conversation and let others use it; returns by how much it grew."""
        try:
            row = await self._access.find(connection, RecordKind.CONVERSATION, id_, lock=True)
        except ConversationNotFoundError:
            return 0
        encoded = await read_encoded(connection, record)
        unlock = row.owner == self._access.owner and row.holder == response_id
        return await self._access.extend_conversation(connection, row, encoded, unlock=unlock)
