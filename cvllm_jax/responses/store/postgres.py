"""Stores in PostgreSQL."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from cvllm_jax.errors import ConfigError
from cvllm_jax.responses.store.database import Database
from cvllm_jax.responses.store.errors import StoreUnavailableError
from cvllm_jax.responses.store.owners import AdvisoryLockOwner

__all__ = ["PostgresDatabase", "open_postgres"]

_SETUP_LOCK = 0x6376_6C6C_6D6A_6178
_POOL_SIZE = 8
_COMMAND_SECS = 60.0
_SETTINGS = {
    "application_name": "cvllm-jax",
    "jit": "off",  # it costs more than these queries
    # a machine that lost its power loses its locks within half a minute
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


class PostgresDatabase(Database):
    """A database of a server."""

    async def alone(self, connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SETUP_LOCK})

    def _is_driver_error(self, error: Exception) -> bool:
        return isinstance(error, _driver_errors())

    def _failure(self, error: BaseException) -> StoreUnavailableError:
        state = getattr(error, "sqlstate", None) or ""
        if state == "53100":
            return StoreUnavailableError(f"{self.name} has no space left")
        if isinstance(error, TimeoutError):
            return StoreUnavailableError(f"{self.name} does not answer")
        # SQLAlchemy puts the driver's own error behind one of its own, with the class named in the text
        cause = error.__cause__ or error
        if isinstance(cause, OSError):
            return StoreUnavailableError(f"{self.name} cannot be reached: {cause.strerror or cause}")
        first_line = str(cause).partition("\n")[0][:300]
        return StoreUnavailableError(f"{self.name} failed: {first_line}")


async def open_postgres(url: str, *, timeout_secs: float) -> PostgresDatabase:
    """A store in the database that ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE`` names.

    Raises:
        ConfigError: asyncpg is not installed, or the URL cannot be read.
        StoreUnavailableError: the server cannot be reached, or refuses.
        StoreFormatError: the store was written by a newer version.
    """
    url = url.replace("postgresql+asyncpg://", "postgresql://", 1)
    name = _name(url)
    # asyncpg reads the URL as PostgreSQL's own tools do: sslmode, several hosts, sockets, a file of passwords
    connect = partial(
        _driver().connect, url, timeout=timeout_secs, command_timeout=_COMMAND_SECS, server_settings=_SETTINGS
    )
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=_POOL_SIZE,
        max_overflow=0,
        pool_timeout=_COMMAND_SECS,
        pool_pre_ping=True,
        hide_parameters=True,
    )
    snapshots = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    database = PostgresDatabase(
        name, owner=AdvisoryLockOwner(connect, (OSError, *_driver_errors())), reader=snapshots, writer=engine
    )
    try:
        await _check(database)
        await database.prepare()
    except BaseException:
        await database.aclose()
        raise
    return database


def _driver() -> Any:
    try:
        return importlib.import_module("asyncpg")  # it has no types
    except ImportError:
        raise ConfigError("a store in PostgreSQL needs asyncpg: pip install 'cvllm-jax[postgres]'") from None


def _driver_errors() -> tuple[type[Exception], ...]:
    return _driver().PostgresError, _driver().InterfaceError


async def _check(database: PostgresDatabase) -> None:
    with database.failures():
        try:
            await database.owner.hold()
        except (ValueError, _driver().ClientConfigurationError):
            # its message may quote the URL
            raise ConfigError(_UNREADABLE) from None


_UNREADABLE = (
    "the URL of the PostgreSQL store cannot be read: it is postgresql://USER:PASSWORD@HOST:PORT/DATABASE, "
    "where special characters of the user and the password are percent-encoded"
)


def _name(url: str) -> str:
    """The server and the database of a URL, without the user and the password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        query = dict(parse_qsl(parts.query))
    except ValueError:
        raise ConfigError(_UNREADABLE) from None
    if "@" in parts.path + parts.query + parts.fragment:  # a / or ? or # of the password has split it
        raise ConfigError(_UNREADABLE)
    host = host or query.get("host") or "the default host"
    return f"PostgreSQL at {host}{f':{port}' if port else ''}, database {parts.path.strip('/') or 'by default'},"
