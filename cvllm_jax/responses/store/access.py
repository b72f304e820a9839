"""What responses and conversations do alike: find, lock and resize a record, and keep the limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from cvllm_jax.responses.store.accounting import add_to_totals, check_size, evict
from cvllm_jax.responses.store.database import Database
from cvllm_jax.responses.store.encoding import MAX_ID_CHARS
from cvllm_jax.responses.store.errors import (
    ConversationLockedError,
    ConversationNotFoundError,
    DuplicateIdError,
    ResponseNotFoundError,
)
from cvllm_jax.responses.store.items import EncodedItem, append_items, check_new_ids, next_position, size_of
from cvllm_jax.responses.store.records import StoreLimits
from cvllm_jax.responses.store.schema import ItemList, RecordKind, RecordState, records

__all__ = ["Access", "Record"]


class Record(NamedTuple):
    """What its row says, with the size of the body instead of the body."""

    seq: int
    state: int
    owner: int | None
    holder: str | None
    conversation: str | None
    bytes: int
    body_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One store's database, its limits and its clock. All methods work inside a transaction of the caller."""

    database: Database
    limits: StoreLimits
    clock: Callable[[], float] = time.time

    @property
    def owner(self) -> int:
        return self.database.owner.id

    async def find(self, connection: AsyncConnection, kind: RecordKind, id_: str, *, lock: bool = False) -> Record:
        """A record. ``lock``: nobody else changes it during this transaction.

        Raises:
            ResponseNotFoundError, ConversationNotFoundError: there is none.
        """
        row = None
        if len(id_) <= MAX_ID_CHARS:
            query = select(
                records.c.seq, records.c.state, records.c.owner, records.c.holder, records.c.conversation,
                records.c.bytes, func.length(records.c.body).label("body_bytes"),
            ).where(records.c.kind == kind, records.c.id == id_)  # fmt: skip
            row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
        if row is None:
            raise (ResponseNotFoundError if kind is RecordKind.RESPONSE else ConversationNotFoundError)(id_)
        return Record(*row)

    async def add(self, connection: AsyncConnection, kind: RecordKind, **values: Any) -> int:
        """A new record; its number.

        Raises:
            DuplicateIdError: the id is taken.
        """
        now = self.clock()
        try:
            result = await connection.execute(insert(records).values(kind=kind, created_at=now, used_at=now, **values))
        except IntegrityError:
            raise DuplicateIdError(values["id"]) from None
        key: Any = result.inserted_primary_key
        return int(key[0])

    async def resize(self, connection: AsyncConnection, row: Record, growth: int, **values: Any) -> int:
        """Change a record that is locked for this transaction, and what it takes; returns ``growth``, to be counted.

        Raises:
            StoreLimitError: it alone would be larger than the store.
        """
        if growth > 0:
            check_size(row.bytes + growth, self.limits)
        await connection.execute(
            update(records).where(records.c.seq == row.seq).values(bytes=row.bytes + growth, **values)
        )
        return growth

    async def count(
        self, connection: AsyncConnection, *, responses: int = 0, conversations: int = 0, size: int
    ) -> None:
        """Count what this transaction adds, and make room for it.

        Comes last in a transaction: everyone waits for the row of totals, so who has it must not wait for anything.
        """
        usage = await add_to_totals(connection, responses=responses, conversations=conversations, size=size)
        await evict(connection, self.limits, usage)

    async def remove(self, connection: AsyncConnection, kind: RecordKind, row: Record) -> None:
        await connection.execute(delete(records).where(records.c.seq == row.seq))
        await add_to_totals(
            connection,
            responses=-(kind is RecordKind.RESPONSE),
            conversations=-(kind is RecordKind.CONVERSATION),
            size=-row.bytes,
        )

    async def is_used(self, row: Record) -> bool:
        """Whether a living process makes this response, or one that uses this conversation."""
        if row.state != RecordState.ACTIVE or row.owner is None:
            return False
        return not await self.database.owner.dead({row.owner})

    async def lock_conversation(self, connection: AsyncConnection, id_: str, response_id: str) -> Record:
        """Let one response use a conversation, and nobody else; doing it again changes nothing.

        Raises:
            ConversationNotFoundError: there is none.
            ConversationLockedError: another response uses it.
        """
        row = await self.find(connection, RecordKind.CONVERSATION, id_, lock=True)
        if row.state == RecordState.ACTIVE and row.owner == self.owner and row.holder == response_id:
            return row
        if await self.is_used(row):
            raise ConversationLockedError(id_)
        await connection.execute(
            update(records)
            .where(records.c.seq == row.seq)
            .values(state=RecordState.ACTIVE, owner=self.owner, holder=response_id, used_at=self.clock())
        )
        return row

    async def extend_conversation(
        self, connection: AsyncConnection, row: Record, encoded: Sequence[EncodedItem], *, unlock: bool = False
    ) -> int:
        """Add items to a conversation that is locked for this transaction, and let others use it if asked to.

        Returns by how much it grew, to be counted.

        Raises:
            DuplicateIdError: an item has the id of another one.
        """
        await check_new_ids(connection, row.seq, [item.id for item in encoded])
        await append_items(
            connection, row.seq, ItemList.CONVERSATION, encoded, start=await next_position(connection, row.seq)
        )
        state = {"state": RecordState.IDLE, "owner": None, "holder": None} if unlock else {}
        return await self.resize(connection, row, size_of(encoded), used_at=self.clock(), **state)
