"""Which processes live: each holds a lock that its kernel or its server releases when it ends, however it ends.

A response in progress names its owner. Locks need no clocks and no heartbeats: after kill -9 the next process sees at
once that the owner is gone, and an event loop that stalls for a minute is never taken for a dead one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Protocol

__all__ = ["AdvisoryLockOwner", "FileLockOwner", "OnlyOwner", "Owner"]


class Owner(Protocol):
    """One open store."""

    id: int

    async def hold(self) -> None:
        """Take the lock, or take it again if it was lost."""

    async def dead(self, others: Collection[int]) -> set[int]:
        """Those whose process has ended."""

    def traces(self) -> set[int]:
        """Owners that have left something outside the database; asking whether they are dead removes it."""

    async def aclose(self) -> None:
        """Let go of the lock."""


def _new_id() -> int:
    return secrets.randbits(63)


class OnlyOwner:
    """Of a store in memory."""

    def __init__(self) -> None:
        self.id = _new_id()

    async def hold(self) -> None:
        pass

    async def dead(self, others: Collection[int]) -> set[int]:
        return set()

    def traces(self) -> set[int]:
        return set()

    async def aclose(self) -> None:
        pass


class FileLockOwner:
    """Holds a lock on a file of its own beside the database, ``NAME-owner-ID``."""

    def __init__(self, database: Path) -> None:
        self.id = _new_id()
        self._prefix = f"{database}-owner-"
        self._file: int | None = None

    async def hold(self) -> None:
        path = self._path(self.id)
        # whoever finds the file before it is locked takes it for a dead owner's and removes it
        while self._file is None or not _is_at(self._file, path):
            if self._file is not None:
                os.close(self._file)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)

    async def dead(self, others: Collection[int]) -> set[int]:
        return {other for other in others if other != self.id and self._is_dead(other)}

    def traces(self) -> set[int]:
        folder, prefix = os.path.split(self._prefix)
        ids = set()
        for name in os.listdir(folder):
            if name.startswith(prefix):
                with contextlib.suppress(ValueError):
                    ids.add(int(name[len(prefix) :], 16))
        return ids

    async def aclose(self) -> None:
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(self.id))
            os.close(self._file)
            self._file = None

    def _is_dead(self, other: int) -> bool:
        path = self._path(other)
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except BlockingIOError:
            return False
        finally:
            os.close(file)
        return True

    def _path(self, owner: int) -> str:
        return f"{self._prefix}{owner:016x}"


def _is_at(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


class AdvisoryLockOwner:
    """Holds an advisory lock of PostgreSQL in a session of its own."""

    def __init__(self, connect: Callable[[], Awaitable[Any]], errors: tuple[type[Exception], ...]) -> None:
        self.id = _new_id()
        self._connect = connect
        self._errors = errors  # of a connection that does not work
        self._session: Any = None
        self._busy = asyncio.Lock()  # a session runs one statement at a time

    async def hold(self) -> None:
        async with self._busy:
            await self._held()

    async def dead(self, others: Collection[int]) -> set[int]:
        ids = [other for other in others if other != self.id]
        if not ids:
            return set()
        async with self._busy:
            session = await self._held()
            # outside a transaction: a lock that it gets, because nobody has it, is released at once
            rows = await session.fetch(
                "SELECT id FROM unnest($1::bigint[]) AS id WHERE pg_try_advisory_xact_lock(id)", ids
            )
        return {row["id"] for row in rows}

    async def _held(self) -> Any:
        if self._session is not None:
            try:
                await self._session.execute("SELECT 1")
                return self._session
            except self._errors:  # the connection is gone, and the lock with it
                self._session.terminate()
                self._session = None
        session = await self._connect()
        await session.execute("SELECT pg_advisory_lock($1)", self.id)
        self._session = session
        return session

    def traces(self) -> set[int]:
        return set()

    async def aclose(self) -> None:
        async with self._busy:
            if self._session is not None:
                await self._session.close(timeout=5)
                self._session = None
