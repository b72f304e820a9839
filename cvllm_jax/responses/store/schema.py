"""The tables: responses and conversations are records, and both have lists of items."""

from __future__ import annotations

from enum import IntEnum

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    UniqueConstraint,
    text,
)

from cvllm_jax.responses.store.encoding import AnyText

__all__ = [
    "VERSION",
    "ItemList",
    "RecordKind",
    "RecordState",
    "events",
    "items",
    "metadata",
    "records",
    "totals",
    "version",
]

VERSION = 1


class RecordKind(IntEnum):
    RESPONSE = 0
    CONVERSATION = 1


class RecordState(IntEnum):
    IDLE = 0
    """A response has ended; no response uses the conversation."""
    ACTIVE = 1
    """The owner makes the response, or one that uses the conversation."""
    ORPHANED = 2
    """It was active when its owner ended."""


class ItemList(IntEnum):
    INPUT = 0
    OUTPUT = 1
    CONVERSATION = 2


metadata = MetaData()
# SQLite numbers rows by itself only if the key is declared INTEGER
_Serial = BigInteger().with_variant(Integer, "sqlite")

version = Table("cvllm_schema", metadata, Column("version", Integer, primary_key=True))

#: One row. It is the last that a transaction locks.
totals = Table(
    "cvllm_totals",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("responses", BigInteger, nullable=False),
    Column("conversations", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

_active = text(f"state = {RecordState.ACTIVE:d}")
records = Table(
    "cvllm_records",
    metadata,
    # never used twice, so a child still misses a parent that was deleted when another one gets its id
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("kind", SmallInteger, nullable=False),
    Column("id", AnyText, nullable=False),
    Column("parent", BigInteger),  # seq of the previous response: always smaller, so that chains have no cycles
    Column("previous", AnyText),  # its id
    Column("conversation", AnyText),  # id of the conversation that a response is part of
    Column("state", SmallInteger, nullable=False),
    Column("owner", BigInteger),  # the process that made it active
    Column("holder", AnyText),  # id of the response that uses a conversation
    Column("created_at", Double, nullable=False),
    Column("used_at", Double, nullable=False),
    Column("bytes", BigInteger, nullable=False),  # everything of this record
    Column("body", LargeBinary, nullable=False),  # the response, or the conversation's metadata
    Column("settings", LargeBinary),
    UniqueConstraint("kind", "id"),
    Index("cvllm_records_by_age", "used_at", "seq"),
    Index("cvllm_records_by_kind_and_age", "kind", "used_at", "seq"),
    Index("cvllm_records_active", "owner", sqlite_where=_active, postgresql_where=_active),
    sqlite_autoincrement=True,
)


def _record() -> Column[int]:
    return Column("record", BigInteger, ForeignKey("cvllm_records.seq", ondelete="CASCADE"), primary_key=True)


items = Table(
    "cvllm_items",
    metadata,
    _record(),
    Column("list", SmallInteger, primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("id", AnyText, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("cvllm_items_by_id", "id", "record", "list"),
)

#: A row holds a batch: a response has thousands of events.
events = Table(
    "cvllm_events",
    metadata,
    _record(),
    Column("first", BigInteger, primary_key=True, autoincrement=False),  # sequence numbers
    Column("last", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
