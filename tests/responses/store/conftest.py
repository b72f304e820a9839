"""Stores to test: in a file, and in a PostgreSQL server that is started for the run where it is installed."""

import asyncio
import secrets
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # modules that these tests share

from postgres_server import PostgresServer, find_programs

from cvllm_jax.responses.store import ResponseStore


@pytest.fixture(scope="session")
def postgres():
    pytest.importorskip("asyncpg")
    programs, user = find_programs()
    folder = Path(tempfile.mkdtemp(prefix="cvllm-pg-"))  # a short path: it holds a socket
    try:
        server = PostgresServer(folder, programs, user)
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def new_postgres_url(postgres):
    """Makes places for stores: a schema each, since a database takes 8 MB."""
    import asyncpg

    async def create(name):
        connection = await asyncpg.connect(postgres.url("postgres"))
        await connection.execute(f"CREATE SCHEMA {name}")
        await connection.close()

    def make():
        name = f"t{secrets.token_hex(6)}"
        with ThreadPoolExecutor(1) as pool:  # the test may be in an event loop
            pool.submit(asyncio.run, create(name)).result()
        return f"{postgres.url('postgres')}&search_path={name}"

    return make


@pytest.fixture
def postgres_url(new_postgres_url):
    return new_postgres_url()


@pytest.fixture(params=["sqlite", "postgres"])
def target(request, tmp_path):
    """A place for a store that any process can open."""
    return str(tmp_path / "store.sqlite3") if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
async def store(target, anyio_backend):
    async with await ResponseStore.open(target) as store:
        yield store
