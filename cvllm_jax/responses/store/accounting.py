"""How much is stored, and what goes when it is too much.

The totals are one row that every transaction changes together with what it counts. Eviction is part of the transaction
that exceeds a limit: it costs a walk along an index, and what others see never exceeds the limits, but for
what is in progress.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cvllm_jax.responses.store.errors import StoreLimitError
from cvllm_jax.responses.store.records import StoreLimits, StoreUsage
from cvllm_jax.responses.store.schema import RecordKind, RecordState, records, totals

__all__ = ["add_to_totals", "check_size", "evict", "read_totals"]

_BATCH = 100


def check_size(size: int, limits: StoreLimits) -> None:
    """Refuse a record for which everything else would have to go, and which still would not fit.

    Raises:
        StoreLimitError: ``size`` bytes are more than the whole store may hold.
    """
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise StoreLimitError(f"{size:,} bytes are more than the store holds in all: max_bytes is {limits.max_bytes:,}")


async def add_to_totals(
    connection: AsyncConnection, *, responses: int = 0, conversations: int = 0, size: int = 0
) -> None:
    await connection.execute(
        update(totals).values(
            responses=totals.c.responses + responses,
            conversations=totals.c.conversations + conversations,
            bytes=totals.c.bytes + size,
        )
    )


async def read_totals(connection: AsyncConnection) -> StoreUsage:
    row = (await connection.execute(select(totals))).one()
    return StoreUsage(responses=row.responses, conversations=row.conversations, bytes=row.bytes)


async def evict(connection: AsyncConnection, limits: StoreLimits, now: float) -> None:
    """Delete the oldest until the limits are kept. Comes after ``add_to_totals``, which locks the row of totals."""
    if limits.max_age_secs is not None:
        while await _delete_oldest(connection, records.c.used_at < now - limits.max_age_secs):
            pass
    usage = await read_totals(connection)
    for kind, limit in (
        (RecordKind.RESPONSE, limits.max_responses),
        (RecordKind.CONVERSATION, limits.max_conversations),
    ):
        while limit is not None and (excess := _count(usage, kind) - limit) > 0:
            gone = await _delete_oldest(connection, records.c.kind == kind, count=min(excess, _BATCH))
            if gone is None:
                break
            usage = _minus(usage, gone)
    while limits.max_bytes is not None and (excess := usage.bytes - limits.max_bytes) > 0:
        gone = await _delete_oldest(connection, size=excess)
        if gone is None:
            break
        usage = _minus(usage, gone)


def _count(usage: StoreUsage, kind: RecordKind) -> int:
    return usage.responses if kind is RecordKind.RESPONSE else usage.conversations


def _minus(usage: StoreUsage, gone: StoreUsage) -> StoreUsage:
    return StoreUsage(
        responses=usage.responses - gone.responses,
        conversations=usage.conversations - gone.conversations,
        bytes=usage.bytes - gone.bytes,
    )


async def _delete_oldest(
    connection: AsyncConnection, *conditions: ColumnElement[bool], count: int = _BATCH, size: int | None = None
) -> StoreUsage | None:
    """Delete up to ``count`` of the oldest that nothing makes or uses, but not more than make ``size`` bytes.

    Returns what went, or None if nothing did.
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
    gone = StoreUsage(responses=responses, conversations=len(victims) - responses, bytes=freed)
    await connection.execute(delete(records).where(records.c.seq.in_(victims)))
    await add_to_totals(connection, responses=-gone.responses, conversations=-gone.conversations, size=-gone.bytes)
    return gone
