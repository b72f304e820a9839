"""What goes wrong around a store: one sentence that names the file or the server, and nothing secret."""

import asyncio
import contextlib
import os
import resource
import shutil
import socket
import sqlite3
import sys
import tempfile
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from postgres_server import PASSWORD
from sqlalchemy import event
from sqlalchemy.engine import Engine
from store_audit import audit

from cvllm_jax.errors import ConfigError, IoError
from cvllm_jax.responses.store import (
    ResponseNotFoundError,
    ResponseStore,
    StoreFormatError,
    StoreUnavailableError,
)

pytestmark = pytest.mark.anyio

LARGE = [{"id": "large", "text": "x" * 3_000_000}]


async def opens(target, **options):
    async with await ResponseStore.open(target, **options) as store:
        await store.create("r", {"status": "in_progress"})
        await store.finish("r", {"status": "completed"})
        await store.delete("r")


async def error_of(target, kind=StoreUnavailableError, **options):
    """The message of the error that opening and writing to a store ends in."""
    with pytest.raises(kind) as caught:
        await opens(target, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_file_that_is_something_else(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database" * 100)
    assert await error_of(text, StoreFormatError) == f"{text} is no store of responses: it is not an SQLite file"
    assert text.read_text() == "not a database" * 100

    foreign = tmp_path / "foreign.sqlite3"
    with contextlib.closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    before = foreign.read_bytes()
    assert "an SQLite file with other tables" in await error_of(foreign, StoreFormatError)
    assert foreign.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign.sqlite3", "notes.txt"]


async def test_a_damaged_file(tmp_path):
    target = tmp_path / "store.sqlite3"
    async with await ResponseStore.open(target) as store:
        for number in range(50):
            await store.create(f"r{number}", {"text": "x" * 3000})
            await store.finish(f"r{number}", {"text": "y" * 3000})
    with target.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(target.stat().st_size - 8192))
    assert await error_of(target, StoreFormatError) == f"the store {target} is damaged"


async def test_a_newer_version(target):
    await opens(target)
    if target.startswith("postgresql:"):
        import asyncpg

        connection = await asyncpg.connect(target)
        await connection.execute("UPDATE cvllm_schema SET version = 7")
        await connection.close()
    else:
        with contextlib.closing(sqlite3.connect(target)) as connection, connection:
            connection.execute("UPDATE cvllm_schema SET version = 7")
    message = await error_of(target, StoreFormatError)
    assert "its format is 7, this version reads 1" in message


async def test_a_locked_file(tmp_path):
    target = tmp_path / "store.sqlite3"
    async with await ResponseStore.open(target, timeout_secs=0.3) as store:
        await store.create("r", {"status": "in_progress"})
        with contextlib.closing(sqlite3.connect(target)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError) as caught:
                await store.finish("r", {"status": "completed"})
            assert str(caught.value) == f"the store {target} was locked by another process for more than 0.3 s"
            assert "was locked by another process" in await error_of(target, timeout_secs=0.1)
            assert (await store.retrieve("r")).active  # reading goes on
        await store.finish("r", {"status": "completed"})


async def test_a_full_disk(tmp_path):
    target = str(tmp_path / "store.sqlite3")
    bound = lambda connection, _: connection.execute("PRAGMA max_page_count = 200")  # noqa: E731
    event.listen(Engine, "connect", bound)
    try:
        async with await ResponseStore.open(target) as store:
            await store.create("r", {"status": "in_progress"})
            for write in (store.create("s", {}, input_items=LARGE), store.finish("r", {}, LARGE)):
                with pytest.raises(StoreUnavailableError) as caught:
                    await write
                assert str(caught.value) == f"there is no space left for the store {target}"
            with pytest.raises(ResponseNotFoundError):
                await store.retrieve("s")
            await store.finish("r", {"status": "completed"})
    finally:
        event.remove(Engine, "connect", bound)
    await audit(target)


async def test_a_disk_that_takes_no_more(tmp_path):
    target = str(tmp_path / "store.sqlite3")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with await ResponseStore.open(target) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
        try:
            with pytest.raises(StoreUnavailableError, match="cannot be read or written: the disk"):
                await store.create("s", {}, input_items=LARGE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await store.create("r", {})
    await audit(target)


@contextlib.contextmanager
def without_privileges():
    """Files are those of nobody: the superuser may write everywhere."""
    if os.getuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


async def test_what_may_not_be_written():
    folder = Path(tempfile.mkdtemp())
    try:
        store, empty = folder / "store.sqlite3", folder / "empty"
        await opens(store)
        empty.mkdir()
        store.chmod(0o444)
        for path in (folder, empty):
            path.chmod(0o555)
        with without_privileges():
            for path in (store, empty / "store.sqlite3", empty / "new" / "store.sqlite3"):
                message = await error_of(path)
                assert message == f"the store {path} cannot be opened: Permission denied"
        assert "Is a directory" in await error_of(folder)
        assert "cannot be opened" in await error_of(store / "store.sqlite3")
    finally:
        os.chmod(folder, 0o755)
        shutil.rmtree(folder)


async def test_a_file_is_for_its_user_only(tmp_path):
    target = tmp_path / "new" / "folder" / "store.sqlite3"
    async with await ResponseStore.open(target) as store:
        await store.create("r", {})
        assert {path.stat().st_mode & 0o777 for path in target.parent.iterdir()} == {0o600}
        assert len(list(target.parent.iterdir())) == 4  # with the log, the index of it, and the owner's lock


async def test_odd_names_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a b?c=d#e%20f.db", "file:x?mode=memory", "ü", "[*]"):
        await opens(name)
        assert (tmp_path / name).exists()


def everything_said(error):
    return "".join(traceback.format_exception(error)) + repr(error)


async def test_servers_that_cannot_be_reached(postgres):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        secret = quote(PASSWORD, safe="")
        for url, words in (
            (f"postgresql://u:{secret}@127.0.0.1:{port}/d", ("127.0.0.1", str(port), "does not answer")),
            (f"postgresql://u:{secret}@127.0.0.1:1/d", ("127.0.0.1:1", "cannot be reached")),
            (f"postgresql+asyncpg://u:{secret}@nowhere.invalid/d", ("nowhere.invalid", "cannot be reached")),
            (postgres.tcp_url("postgres", "wr0ng-secret"), ("127.0.0.1", "password authentication failed")),
            (postgres.tcp_url("missing"), ("127.0.0.1", "does not exist")),
        ):
            with pytest.raises(StoreUnavailableError) as caught:
                await ResponseStore.open(url, timeout_secs=0.5 if "does not answer" in words else 10)
            assert all(word in str(caught.value) for word in words), str(caught.value)
            said = everything_said(caught.value)
            assert not [text for text in (PASSWORD, secret, "wr0ng-secret") if text in said]


async def test_a_password(postgres, postgres_url):
    schema = postgres_url.rpartition("&")[2]
    await opens(postgres.tcp_url("postgres").replace("postgresql:", "postgres:") + f"?{schema}")
    await opens(postgres.tcp_url("postgres") + f"?sslmode=prefer&{schema}")


async def test_a_server_that_goes_away(postgres, postgres_url):
    async with await ResponseStore.open(postgres_url) as store:
        await store.create("r", {"status": "in_progress"})
        postgres.stop()
        try:
            with pytest.raises(StoreUnavailableError, match=r"PostgreSQL at .* cannot be reached"):
                await store.retrieve("r")
        finally:
            postgres.start()
        assert (await store.retrieve("r")).active


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hush/hush@host/database",
        "postgresql://user:987#987@host/database",
        "postgresql://user:hush?hush@host/database",
        "postgresql://user:hush@host:port/database",
        "postgresql://user:hush@[host/database",
        "postgresql://user:hush@host/database?sslmode=hush",
        "mysql://user:hush@host/database",
        "sqlite:///hush.db",
    ],
)
async def test_urls_that_cannot_be_read(url):
    pytest.importorskip("asyncpg")
    with pytest.raises(ConfigError, match="postgresql://") as caught:
        await ResponseStore.open(url, timeout_secs=1)
    said = everything_said(caught.value)
    assert "hush" not in said
    assert "987" not in said


@pytest.mark.parametrize(
    ("missing", "extra"), [("sqlalchemy", "server"), ("aiosqlite", "server"), ("asyncpg", "postgres")]
)
async def test_a_missing_package(missing, extra, tmp_path):
    target = "postgresql://host/database" if missing == "asyncpg" else "store.sqlite3"
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import asyncio\n"
        "from cvllm_jax.responses.store import StoreLimits, StoreError\n"
        "from cvllm_jax.errors import ConfigError\n"
        "try:\n"
        "    from cvllm_jax.responses.store import ResponseStore\n"
        f"    asyncio.run(ResponseStore.open({target!r}))\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=tmp_path, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    said = (await process.communicate())[0].decode()
    assert f"pip install 'cvllm-jax[{extra}]'" in said
    assert missing in said.lower()


async def test_errors_are_of_the_library():
    assert issubclass(StoreUnavailableError, IoError)
    assert issubclass(StoreUnavailableError, OSError)
