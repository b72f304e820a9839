"""Which kind of database a user means."""

from __future__ import annotations

import os
from pathlib import Path

from cvllm_jax.errors import ConfigError, shown
from cvllm_jax.responses.store.database import Database
from cvllm_jax.responses.store.postgres import open_postgres
from cvllm_jax.responses.store.sqlite import open_memory, open_sqlite

__all__ = ["open_database"]


async def open_database(target: str | os.PathLike[str], *, timeout_secs: float) -> Database:
    """The database of a file, a URL, or memory; as :meth:`ResponseStore.open` says."""
    if isinstance(target, str):
        if target == ":memory:":
            return await open_memory()
        scheme, separator, _ = target.partition("://")
        if scheme in ("postgres", "postgresql", "postgresql+asyncpg"):
            return await open_postgres(target, timeout_secs=timeout_secs)
        if separator:
            raise ConfigError(f"a store is a file, or postgresql://..., not {shown(scheme)}")
    return await open_sqlite(_absolute(target), timeout_secs=timeout_secs)


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))
