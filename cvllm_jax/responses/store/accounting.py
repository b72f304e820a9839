"""How much is stored, and what goes when it is too much.

The totals are one row that every transaction changes together with what it counts. Eviction is part of the transaction
that exceeds a limit: it walks along an index, and nobody ever sees more than the limits, but for what is in progress.
Age is looked at from time to time only.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cvllm_jax.responses.store.errors import StoreLimitError
from cvllm_jax.responses.store.records import StoreLimits, StoreUsage
from cvllm_jax.responses.store.schema import RecordKind, RecordState, records, totals

__all__ = ["add_to_totals", "check_size", "evict", "expire", "read_totals"]

_BATCH = 100
_TOTALS = (totals.c.responses, totals.c.conversations, totals.c.bytes)


def check_size(size: int, limits: StoreLimits) -> None:
    """Refuse a record for which everything else would have to go, and which still would not fit.

    Raises:
        StoreLimitError: ``size`` bytes are more than the whole store may hold.
    """
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise StoreLimitError(f"{size:,} bytes are more than the store holds in all: max_bytes is {limits.max_bytes:,}")


async def add_to_totals(
    connection: AsyncConnection, *, responses: int = 0, conversations: int = 0, size: int = 0
) -> StoreUsage:
    """Count what this transaction changes, and lock the row of totals; returns the new ones."""
    change = update(totals).values(
        responses=totals.c.responses + responses,
        conversations=totals.c.conversations + conversations,
        bytes=totals.c.bytes + size,
    )
    return StoreUsage(**(await connection.execute(change.returning(*_TOTALS))).one()._mapping)


async def read_totals(connection: AsyncConnection) -> StoreUsage:
    return StoreUsage(**(await connection.execute(select(*_TOTALS))).one()._mapping)


async def evict(connection: AsyncConnection, limits: StoreLimits, usage: StoreUsage) -> None:
    """Delete the oldest until they are no more than the limits say. ``usage``: as ``add_to_totals`` returned it."""
    for kind, limit in (
        (RecordKind.RESPONSE, limits.max_responses),
        (RecordKind.CONVERSATION, limits.max_conversations),
    ):
        while limit is not None and (excess := _count(usage, kind) - limit) > 0:
            left = await _delete_oldest(connection, records.c.kind == kind, count=min(excess, _BATCH))
            if left is None:
                break
            usage = left
    while limits.max_bytes is not None and (excess := usage.bytes - limits.max_bytes) > 0:
        left = await _delete_oldest(connection, size=excess)
        if left is None:
            break
        usage = left


async def expire(connection: AsyncConnection, limits: StoreLimits, now: float) -> None:
    """Delete what is older than the limits say."""
    if limits.max_age_secs is not None:
        while await _delete_oldest(connection, records.c.used_at < now - limits.max_age_secs):
            pass


def _count(usage: StoreUsage, kind: RecordKind) -> int:
    return usage.responses if kind is RecordKind.RESPONSE else usage.conversations


async def _delete_oldest(
    connection: AsyncConnection, *conditions: ColumnElement[bool], count: int = _BATCH, size: int | None = None
) -> StoreUsage | None:
    """Delete up to ``count`` of the oldest that nothing makes or uses, but not more than make ``size`` bytes.

    Returns what is left, or None if nothing went.
    """
    candidates = await connection.execute(
        select(records.c.seq, records.c.kind, records.c.bytes)
        .where(records.c.state != RecordState.ACTIVE, *conditions)
        .order_by(records.c.used_at, records.c.seq)
        .limit(count)
        # whoever has locked one waits for the totals, which are ours: to wait for that one would be a deadlock
        .with_for_update(skip_locked=True)
    )
    victims: list[int] = []
    responses = freed = 0
    for row in candidates:
        if size is not None and freed >= size:
            break
        victims.append(row.seq)
        responses += row.kind == RecordKind.RESPONSE
        freed += row.bytes
    if not victims:
        return None
    await connection.execute(delete(records).where(records.c.seq.in_(victims)))
    return await add_to_totals(connection, responses=-responses, conversations=responses - len(victims), size=-freed)
