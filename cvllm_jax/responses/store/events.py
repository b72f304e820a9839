"""Events of background responses, kept so that a stream can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cvllm_jax.responses.store.encoding import from_json, to_json
from cvllm_jax.responses.store.errors import StoreValueError
from cvllm_jax.responses.store.records import JsonObject
from cvllm_jax.responses.store.schema import events

__all__ = ["EncodedEvents", "encode_events", "insert_events", "read_events"]


class EncodedEvents(NamedTuple):
    """A batch as it is stored, with its first and last sequence numbers."""

    first: int
    last: int
    body: bytes


def encode_events(batch: Sequence[JsonObject]) -> EncodedEvents:
    """A batch as it is stored.

    Raises:
        StoreValueError: it is empty, or sequence numbers are missing or do not grow.
    """
    if not batch:
        raise StoreValueError("a batch of events must not be empty")
    last = -1
    for event in batch:
        number = event.get("sequence_number")
        if type(number) is not int or not 0 <= number < 1 << 62:
            raise StoreValueError("an event must have a sequence_number, a whole number from 0 up")
        if number <= last:
            raise StoreValueError(f"sequence numbers must grow: {number} comes after {last}")
        last = number
    return EncodedEvents(batch[0]["sequence_number"], last, to_json(list(batch)))


async def insert_events(connection: AsyncConnection, record: int, batch: EncodedEvents) -> None:
    """Add a batch to a record that is locked for this transaction.

    Raises:
        StoreValueError: it does not come after those that are there.
    """
    query = select(func.max(events.c.last)).where(events.c.record == record)
    last = (await connection.execute(query)).scalar()
    if last is not None and batch.first <= last:
        raise StoreValueError(f"sequence numbers must grow: {batch.first} comes after {last}")
    row = {"record": record, "first": batch.first, "last": batch.last, "body": batch.body}
    await connection.execute(insert(events).values(row))


async def read_events(connection: AsyncConnection, record: int, after: int, limit: int) -> list[JsonObject]:
    """Up to ``limit`` events with a number greater than ``after``, in order."""
    query = (
        select(events.c.body)
        .where(events.c.record == record, events.c.last > after)
        .order_by(events.c.first)
        .limit(limit)
    )
    found: list[JsonObject] = []
    async with connection.stream(query) as batches:
        async for (body,) in batches:
            found += [event for event in from_json(body) if event["sequence_number"] > after]
            if len(found) >= limit:
                break
    return found[:limit]
