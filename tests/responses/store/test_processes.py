"""Processes that share a store, and that are killed while they write."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from store_audit import audit

from cvllm_jax.responses.store import ResponseStore

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]


@contextlib.contextmanager
def writer(target, *arguments):
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("store_writer.py"), target, *arguments],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def check(store, said):
    """Everything that the writer was told is stored is there, and what is there is whole."""
    finished = {words[1] for words in said if words[0] == "finished"}
    events = {words[1]: int(words[2]) for words in said if words[0] == "appended"}
    for id_ in {words[1] for words in said if words[0] == "created"}:
        found = await store.retrieve(id_)
        assert not found.active
        assert found.interrupted == (found.response["status"] == "incomplete")
        whole = not found.interrupted
        assert whole or id_ not in finished
        if not whole:
            assert found.response["incomplete_details"] == {"reason": "interrupted"}
        ids = [item["id"] for item in await store.chain(id_)]
        assert ids[-4 if whole else -3 :] == [f"{id_}_0", f"{id_}_1", f"{id_}_2", f"{id_}_out"][: 3 + whole]
        stored = [event["sequence_number"] for event in await store.events_after(id_, -1)]
        assert stored == list(range(len(stored)))
        assert len(stored) == 6 if whole else len(stored) > events.get(id_, -1)


@pytest.mark.parametrize("lines", [1, 9])
async def test_killed_between_two_writes(target, lines):
    with writer(target, "w") as process:
        said = [process.stdout.readline().split() for _ in range(lines)]
        await asyncio.sleep(0.003 * (lines % 3))  # anywhere inside the next one
        process.send_signal(signal.SIGKILL)
        said += [line.split() for line in process.stdout.read().splitlines()]
        process.wait()
    async with await ResponseStore.open(target) as store:
        await check(store, said)
        await store.conversations.add_items("w_c", [{"id": "new"}])  # nobody uses it any more
        items = [item["id"] for item in await store.conversations.all_items("w_c")]
        assert len(items) % 4 == 1
        # an interrupted one can be gone on from
        await store.create("next", {}, previous_response_id=said[-1][1])
    await audit(target)
    if not target.startswith("postgresql:"):
        folder = Path(target).parent
        assert [path.name for path in folder.iterdir() if "owner" in path.name] == []


async def test_processes_leave_each_other_alone(target):
    with writer(target, "a", "1.0") as a, writer(target, "b") as b:
        for process in (b, a):
            assert process.stdout.readline().startswith("created")
        async with await ResponseStore.open(target) as store:
            await store.create("mine", {"status": "in_progress"})
            await store.sweep()
            assert not (await store.retrieve("a_0")).interrupted  # its process lives, however long it stalls
            b.kill()
            said = [line.split() for line in b.stdout.read().splitlines()]
            b.wait()
            await store.sweep()
            await check(store, said)
            assert (await store.retrieve("mine")).active
            await store.finish("mine", {"status": "completed"})
            for _ in range(10):  # it goes on
                assert a.stdout.readline().split()[0] in ("created", "appended", "finished")
    await audit(target)


async def test_many_open_a_new_store_at_once(target):
    stores = await asyncio.gather(*(ResponseStore.open(target) for _ in range(5)))
    await asyncio.gather(*(store.create(f"r{number}", {}) for number, store in enumerate(stores)))
    for store in stores:
        await store.sweep()
        assert (await store.usage()).responses == 5
    await asyncio.gather(*(store.finish(f"r{number}", {}) for number, store in enumerate(stores)))
    await asyncio.gather(*(store.aclose() for store in stores))
    await audit(target)


async def test_a_restart_of_postgres(postgres, postgres_url):
    async with await ResponseStore.open(postgres_url) as store, await ResponseStore.open(postgres_url) as other:
        await store.create("r", {"status": "in_progress"})
        postgres.restart()
        await other.sweep()  # the locks are gone, and this one is the first to come back
        await store.sweep()
        assert (await store.retrieve("r")).interrupted
        await store.finish("r", {"status": "completed"})  # it was not
        assert (await store.retrieve("r")).response["status"] == "completed"
        await store.create("s", {"status": "in_progress"})
        await other.sweep()
        assert (await store.retrieve("s")).active


def test_a_store_that_is_not_closed_keeps_no_process_alive(tmp_path):
    program = (
        "import asyncio, sys\nfrom cvllm_jax.responses.store import ResponseStore\n"
        "async def main():\n"
        "    store = await ResponseStore.open(sys.argv[1])\n"
        "    await store.create('r', {})\n"
        "    await store.usage()\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "store.sqlite3"], cwd=ROOT, check=True, timeout=60)


async def test_an_owner_whose_file_was_removed_takes_it_again(tmp_path):
    target = tmp_path / "store.sqlite3"
    async with await ResponseStore.open(target) as store, await ResponseStore.open(target) as other:
        await store.create("r", {})
        for path in tmp_path.glob("*-owner-*"):
            path.unlink()
        await store.sweep()
        await other.sweep()
        assert (await other.retrieve("r")).active
    assert not list(tmp_path.glob("*-owner-*"))
