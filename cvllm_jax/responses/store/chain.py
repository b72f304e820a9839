"""Chains of responses: each goes on from another one."""

from __future__ import annotations

from sqlalchemy import CTE, func, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cvllm_jax.responses.store.encoding import from_json
from cvllm_jax.responses.store.errors import ChainTooLongError, PreviousResponseNotFoundError, ResponseActiveError
from cvllm_jax.responses.store.records import JsonObject
from cvllm_jax.responses.store.schema import RecordState, items, records

__all__ = ["MAX_CHAIN", "MAX_CHAIN_BYTES", "read_chain"]

MAX_CHAIN = 10_000
MAX_CHAIN_BYTES = 256 << 20


async def read_chain(connection: AsyncConnection, newest: int) -> list[JsonObject]:
    """Items of the record ``newest`` and of all before it, in order. The transaction sees one state throughout.

    Raises:
        PreviousResponseNotFoundError, ResponseActiveError, ChainTooLongError: as :meth:`ResponseStore.chain` does.
    """
    links = _links(newest)
    columns = select(records.c.id, records.c.parent, records.c.previous, records.c.state)
    rows = (await connection.execute(columns.join(links, records.c.seq == links.c.seq).order_by(links.c.depth))).all()
    if len(rows) > MAX_CHAIN:
        raise ChainTooLongError(f"more than {MAX_CHAIN:,} responses go on from each other before this one")
    if rows[-1].parent is not None:
        raise PreviousResponseNotFoundError(rows[-1].previous)
    for row in rows:
        if row.state == RecordState.ACTIVE:
            raise ResponseActiveError(row.id)
    size = select(func.coalesce(func.sum(func.length(items.c.body)), 0)).join(links, items.c.record == links.c.seq)
    if (await connection.execute(size)).scalar_one() > MAX_CHAIN_BYTES:
        raise ChainTooLongError(f"the responses before this one hold more than {MAX_CHAIN_BYTES >> 20} MiB")
    bodies = (
        select(items.c.body)
        .join(links, items.c.record == links.c.seq)
        # a record is always newer than what it goes on from
        .order_by(items.c.record, items.c.list, items.c.position)
    )
    return [from_json(body) for body in (await connection.execute(bodies)).scalars()]


def _links(newest: int) -> CTE:
    """Number, parent and distance of a record and of all before it, one more than the limit at most."""
    links = (
        select(records.c.seq, records.c.parent, literal(1).label("depth"))
        .where(records.c.seq == newest)
        .cte("links", recursive=True)
    )
    older = records.alias("older")
    return links.union_all(
        select(older.c.seq, older.c.parent, links.c.depth + 1)
        # smaller numbers only: no cycle, whatever a file says
        .where(older.c.seq == links.c.parent, older.c.seq < links.c.seq, links.c.depth <= MAX_CHAIN)
    )
