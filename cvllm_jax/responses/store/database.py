"""The database of a store: transactions, and one clear sentence for whatever goes wrong in them."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator

from sqlalchemy import insert, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cvllm_jax.errors import IoError
from cvllm_jax.responses.store.errors import StoreFormatError, StoreUnavailableError
from cvllm_jax.responses.store.owners import Owner
from cvllm_jax.responses.store.schema import VERSION, metadata, totals, version

__all__ = ["Database"]


class Database(ABC):
    """What the kinds of databases have in common.

    ``name`` is what errors call it: a file, or a host and a database, never with a password.
    """

    def __init__(self, name: str, *, owner: Owner, reader: AsyncEngine, writer: AsyncEngine) -> None:
        self.name = name
        self.owner = owner
        self._reader = reader
        self._writer = writer
        # of one connection, readers and writers take turns
        self._turns = asyncio.Lock() if reader is writer and reader.dialect.name == "sqlite" else None

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state of the database throughout."""
        with self.failures():
            async with self._turns or contextlib.nullcontext(), self._reader.connect() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is committed as a whole, or not at all where an error or a cancellation leaves it."""
        with self.failures():
            async with self._turns or contextlib.nullcontext(), self._writer.begin() as connection:
                yield connection

    async def prepare(self) -> None:
        """Make the tables where there are none, and take part as an owner.

        Raises:
            StoreUnavailableError: the database cannot be reached or written.
            StoreFormatError: it is something else, or was written by a newer version.
        """
        with self.failures():
            await self.owner.hold()
        async with self.write() as connection:
            await self.alone(connection)
            await connection.run_sync(metadata.create_all)
            found = (await connection.execute(select(version.c.version))).scalars().all()
            if not found:
                await connection.execute(insert(version).values(version=VERSION))
                await connection.execute(insert(totals).values(id=0, responses=0, conversations=0, bytes=0))
            elif found != [VERSION]:
                raise StoreFormatError(
                    f"the store {self.name} was written by a newer version of this library: "
                    f"its format is {max(found)}, this version reads {VERSION}"
                )

    @abstractmethod
    async def alone(self, connection: AsyncConnection) -> None:
        """Let no other process set up or clean up during this transaction."""

    async def aclose(self) -> None:
        await self.owner.aclose()
        await self._reader.dispose()
        if self._writer is not self._reader:
            await self._writer.dispose()

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Errors of the driver, the file system and the network become errors of the store."""
        try:
            yield
        except IoError:  # ours, and an OSError
            raise
        except (SQLAlchemyError, OSError) as error:
            raise self._failure(error.orig if isinstance(error, DBAPIError) and error.orig else error) from error
        except Exception as error:
            if not self._is_driver_error(error):
                raise
            raise self._failure(error) from error

    @abstractmethod
    def _is_driver_error(self, error: Exception) -> bool:
        """Whether it comes from the driver itself: from a connection that SQLAlchemy does not manage."""

    @abstractmethod
    def _failure(self, error: BaseException) -> StoreUnavailableError:
        """The error for one of the driver, the file system or the network."""
