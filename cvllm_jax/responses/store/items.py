"""Lists of items: the input and the output of a response, and a conversation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqlalchemy import and_, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cvllm_jax.responses.store.encoding import check_id, from_json, to_json
from cvllm_jax.responses.store.errors import (
    DuplicateIdError,
    ItemNotFoundError,
    ItemsTooLargeError,
    StoreValueError,
)
from cvllm_jax.responses.store.records import ItemPage, JsonObject, Order
from cvllm_jax.responses.store.schema import ItemList, items

__all__ = [
    "MAX_FOUND_BYTES",
    "EncodedItem",
    "append_items",
    "check_new_ids",
    "encode_items",
    "newest_items",
    "read_encoded",
    "read_items",
    "read_page",
    "size_of",
]

# a database takes some 32,000 values in one statement
_BATCH = 10_000

MAX_FOUND_BYTES = 256 << 20


class EncodedItem(NamedTuple):
    id: str
    body: bytes


def encode_items(values: Sequence[JsonObject]) -> list[EncodedItem]:
    """Items as they are stored.

    Raises:
        StoreValueError: one is no JSON object with an ``id``.
        DuplicateIdError: two have the same.
    """
    encoded: dict[str, EncodedItem] = {}
    for value in values:
        if not isinstance(value, dict):
            raise StoreValueError(f"an item must be a JSON object, not a {type(value).__name__}")
        item = EncodedItem(check_id(value.get("id")), to_json(value))
        if encoded.setdefault(item.id, item) is not item:
            raise DuplicateIdError(item.id)  # paging from an id needs one place to go on from
    return list(encoded.values())


def size_of(encoded: Sequence[EncodedItem]) -> int:
    return sum(len(item.body) for item in encoded)


async def append_items(
    connection: AsyncConnection, record: int, kind: ItemList, encoded: Sequence[EncodedItem], *, start: int = 0
) -> None:
    """Add items to a list from the position ``start`` on. Whoever does it has locked the record."""
    if not encoded:
        return
    rows: list[dict[str, Any]] = [
        {"record": record, "list": int(kind), "position": position, "id": item.id, "body": item.body}
        for position, item in enumerate(encoded, start)
    ]
    await connection.execute(insert(items), rows)


async def next_position(connection: AsyncConnection, record: int) -> int:
    """Where a conversation goes on."""
    last = select(func.max(items.c.position)).where(items.c.record == record, items.c.list == ItemList.CONVERSATION)
    found = (await connection.execute(last)).scalar()
    return 0 if found is None else found + 1


async def check_new_ids(connection: AsyncConnection, record: int, ids: Sequence[str]) -> None:
    """Require that a conversation has none of these ids, and that they differ.

    Raises:
        DuplicateIdError: naming one that is taken.
    """
    seen: set[str] = set()
    for id_ in ids:
        if id_ in seen:
            raise DuplicateIdError(id_)
        seen.add(id_)
    for start in range(0, len(ids), _BATCH):
        taken = (
            select(items.c.id)
            .where(items.c.record == record, items.c.list == ItemList.CONVERSATION)
            .where(items.c.id.in_(ids[start : start + _BATCH]))
            .limit(1)
        )
        if (found := (await connection.execute(taken)).scalar()) is not None:
            raise DuplicateIdError(found)


async def read_items(connection: AsyncConnection, record: int, kind: ItemList) -> list[JsonObject]:
    """A whole list, in order."""
    rows = select(items.c.body).where(items.c.record == record, items.c.list == kind).order_by(items.c.position)
    return [from_json(body) for body in (await connection.execute(rows)).scalars()]


async def read_encoded(connection: AsyncConnection, record: int) -> list[EncodedItem]:
    """All items of a record, list after list."""
    rows = select(items.c.id, items.c.body).where(items.c.record == record).order_by(items.c.list, items.c.position)
    return [EncodedItem(row.id, row.body) for row in await connection.execute(rows)]


async def newest_items(connection: AsyncConnection, ids: Collection[str]) -> dict[str, JsonObject]:
    """Items by id, whatever record they are part of; of several with one id, one of the newest record.

    Raises:
        ItemsTooLargeError: they hold more than 256 MiB.
    """
    wanted, size = list(ids), 0
    found: dict[str, JsonObject] = {}
    for start in range(0, len(wanted), _BATCH):
        newest = (
            select(items.c.id, func.max(items.c.record).label("record"))
            .where(items.c.id.in_(wanted[start : start + _BATCH]))
            .group_by(items.c.id)
            .subquery()
        )
        of_newest = and_(items.c.id == newest.c.id, items.c.record == newest.c.record)
        lengths = select(func.coalesce(func.sum(func.length(items.c.body)), 0)).join(newest, of_newest)
        size += (await connection.execute(lengths)).scalar_one()
        if size > MAX_FOUND_BYTES:
            raise ItemsTooLargeError(f"the items hold more than {MAX_FOUND_BYTES >> 20} MiB")
        rows = select(items.c.id, items.c.body).join(newest, of_newest)
        found |= {row.id: from_json(row.body) for row in await connection.execute(rows)}
    return found


async def read_page(
    connection: AsyncConnection,
    record: int,
    kind: ItemList,
    *,
    after: str | None,
    before: str | None,
    limit: int,
    order: Order,
) -> ItemPage:
    """Items between two others, as ``order`` turns them.

    Raises:
        ItemNotFoundError: ``after`` or ``before`` is not in the list.
        StoreValueError: ``limit`` is less than 1, or ``order`` is neither "asc" nor "desc".
    """
    if limit < 1:
        raise StoreValueError(f"limit must be at least 1, not {limit}")
    if order not in ("asc", "desc"):
        raise StoreValueError(f'order must be "asc" or "desc", not {order!r}')
    mine = (items.c.record == record, items.c.list == kind)
    position = items.c.position
    rows = select(items.c.body).where(*mine).order_by(position if order == "asc" else position.desc())
    for cursor, comes_later in ((after, True), (before, False)):
        if cursor is not None:
            at = (await connection.execute(select(position).where(*mine, items.c.id == cursor))).scalar()
            if at is None:
                raise ItemNotFoundError(cursor)
            rows = rows.where(position > at if comes_later == (order == "asc") else position < at)
    bodies = (await connection.execute(rows.limit(limit + 1))).scalars().all()
    return ItemPage(items=[from_json(body) for body in bodies[:limit]], has_more=len(bodies) > limit)
