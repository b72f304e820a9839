"""Stores in an SQLite file, or in memory."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from cvllm_jax.errors import ConfigError
from cvllm_jax.responses.store.database import Database
from cvllm_jax.responses.store.errors import StoreFormatError, StoreUnavailableError
from cvllm_jax.responses.store.owners import FileLockOwner, OnlyOwner
from cvllm_jax.responses.store.schema import version

__all__ = ["SqliteDatabase", "open_memory", "open_sqlite"]

_READERS = 4
_MIN_SQLITE = (3, 35)  # RETURNING
_PRAGMAS = (
    "foreign_keys = ON",
    # with WAL: kill -9 loses nothing; a power cut may lose the last transactions, whole
    "synchronous = NORMAL",
    # deleted conversations do not stay in the file
    "secure_delete = FAST",
    # the file may come from anywhere: what its schema says is not run
    "trusted_schema = OFF",
    "cell_size_check = ON",
    f"journal_size_limit = {64 << 20}",
)
_SENTENCES = {
    "SQLITE_FULL": "there is no space left for the store {name}",
    "SQLITE_READONLY": "the store {name} cannot be written: its file or folder is read-only",
    "SQLITE_CANTOPEN": "the store {name} cannot be opened: its file or folder cannot be read and written",
    "SQLITE_PERM": "the store {name} cannot be opened: its file or folder cannot be read and written",
    "SQLITE_IOERR": "the store {name} cannot be read or written: the disk reports an error",
    "SQLITE_NOTADB": "{name} is no store of responses: it is not an SQLite file",
    "SQLITE_CORRUPT": "the store {name} is damaged",
}

_log = logging.getLogger(__name__)


class SqliteDatabase(Database):
    """A file, or memory."""

    timeout_secs: float

    async def alone(self, connection: AsyncConnection) -> None:
        """Nothing to do: a file has one writer."""

    def _is_driver_error(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.Error)

    def _failure(self, error: BaseException) -> StoreUnavailableError:
        if isinstance(error, OSError):
            return StoreUnavailableError(f"the store {self.name} cannot be opened: {error.strerror or error}")
        # SQLITE_IOERR_WRITE is a kind of SQLITE_IOERR
        code = "_".join((getattr(error, "sqlite_errorname", None) or "").split("_")[:2])
        if code in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            return StoreUnavailableError(
                f"the store {self.name} was locked by another process for more than {self.timeout_secs:g} s"
            )
        sentence = _SENTENCES.get(code, "the store {name} failed: {error}").format(name=self.name, error=error)
        if code in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            return StoreFormatError(sentence)
        return StoreUnavailableError(sentence)


async def open_memory() -> SqliteDatabase:
    """A store that ends with its process."""
    engine = _engine(":memory:", begin="BEGIN", timeout_secs=0)
    database = SqliteDatabase("in memory", owner=OnlyOwner(), reader=engine, writer=engine)
    database.timeout_secs = 0
    await database.prepare()
    return database


async def open_sqlite(path: Path, *, timeout_secs: float) -> SqliteDatabase:
    """A store in a file, which is made, for this user only, if it is not there. ``path`` is absolute.

    Raises:
        StoreUnavailableError, StoreFormatError: it cannot be opened, is no store, or is one of a newer version.
    """
    readers = _engine(str(path), begin="BEGIN", timeout_secs=timeout_secs, pool_size=_READERS)
    # a transaction that reads first and writes later can fail at the first write, without waiting
    writer = _engine(str(path), begin="BEGIN IMMEDIATE", timeout_secs=timeout_secs, pool_size=1)
    database = SqliteDatabase(str(path), owner=FileLockOwner(path), reader=readers, writer=writer)
    database.timeout_secs = timeout_secs
    try:
        with database.failures():
            _make(path)
            await _check_is_store(database, readers)
            await _use_wal(path, writer, timeout_secs)
        await database.prepare()
    except BaseException:
        await database.aclose()
        raise
    return database


def _engine(path: str, *, begin: str, timeout_secs: float, pool_size: int | None = None) -> AsyncEngine:
    # writers wait here for their turn, at most as long as those before them may wait for another process
    pool: dict[str, Any] = {} if pool_size is None else {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": 600}
    if sqlite3.sqlite_version_info < _MIN_SQLITE:
        needed = ".".join(map(str, _MIN_SQLITE))
        raise ConfigError(f"the store needs SQLite {needed} or newer; this Python has {sqlite3.sqlite_version}")
    try:
        engine = create_async_engine(
            URL.create("sqlite+aiosqlite", database=path),
            connect_args={"timeout": timeout_secs},
            hide_parameters=True,
            **pool,
        )
    except ImportError:
        raise ConfigError("a store in a file or in memory needs aiosqlite: pip install 'cvllm-jax[server]'") from None

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver would begin by itself, and late
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite's own files beside it take over its permissions
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


async def _check_is_store(database: SqliteDatabase, engine: AsyncEngine) -> None:
    """Leave a file alone that belongs to something else: even the journal's mode is written into it."""
    async with engine.connect() as connection:
        tables = (await connection.exec_driver_sql("SELECT name FROM sqlite_master")).scalars().all()
    if tables and version.name not in tables:
        raise StoreFormatError(f"{database.name} is no store of responses: it is an SQLite file with other tables")


async def _use_wal(path: Path, engine: AsyncEngine, timeout_secs: float) -> None:
    """Let readers and a writer work at the same time. The file remembers it."""
    deadline = time.monotonic() + timeout_secs
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        while True:
            try:
                (mode,) = await (await driver.execute("PRAGMA journal_mode = WAL")).fetchone()
                break
            except sqlite3.OperationalError as error:
                # SQLite does not wait for other processes here
                if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)
    if mode != "wal":
        _log.warning("the file system of %s has no shared memory: readers wait for writers", path)
