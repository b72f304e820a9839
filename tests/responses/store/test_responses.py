"""Responses: created, finished, read, chained, resumed and deleted."""

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_audit import audit

from cvllm_jax.responses.store import (
    ChainTooLongError,
    DuplicateIdError,
    ItemNotFoundError,
    ItemsTooLargeError,
    PreviousResponseNotFoundError,
    ResponseActiveError,
    ResponseClosedError,
    ResponseNotFoundError,
    ResponseStore,
    StoreValueError,
)
from cvllm_jax.responses.store import chain as chain_module
from cvllm_jax.responses.store import items as items_module

pytestmark = pytest.mark.anyio


def item(id_, text="hello"):
    return {"id": id_, "type": "message", "role": "user", "content": text}


def numbered(*numbers):
    return [{"type": "response.output_text.delta", "sequence_number": number, "delta": "x"} for number in numbers]


async def add(store, id_, *, previous=None, inputs=None, outputs=None):
    """A response that has ended."""
    inputs, outputs = [item(f"{id_}_in")] if inputs is None else inputs, outputs or [item(f"{id_}_out")]
    await store.create(id_, {"id": id_, "status": "in_progress"}, input_items=inputs, previous_response_id=previous)
    await store.finish(id_, {"id": id_, "status": "completed"}, outputs)


async def test_a_response_from_start_to_end(store, target):
    await store.create("r", {"id": "r", "status": "queued"}, input_items=[item("a")], settings={"tools": [1]})
    queued = await store.retrieve("r")
    assert queued.response == {"id": "r", "status": "queued"}
    assert queued.settings == {"tools": [1]}
    assert queued.active and not queued.interrupted

    await store.update("r", {"id": "r", "status": "in_progress", "output": []})
    assert (await store.retrieve("r")).response["status"] == "in_progress"

    await store.finish("r", {"id": "r", "status": "completed"}, [item("b"), item("c")])
    done = await store.retrieve("r")
    assert done.response == {"id": "r", "status": "completed"}
    assert not done.active and not done.interrupted
    assert [entry["id"] for entry in await store.chain("r")] == ["a", "b", "c"]

    await audit(target)
    await store.delete("r")
    with pytest.raises(ResponseNotFoundError, match="no response with the id 'r'"):
        await store.retrieve("r")
    usage = await store.usage()
    assert (usage.responses, usage.bytes) == (0, 0)
    await audit(target)


async def test_nothing_is_written_to_what_has_ended(store):
    await add(store, "r")
    for write in (
        store.finish("r", {}),
        store.update("r", {}),
        store.append_events("r", numbered(0)),
    ):
        with pytest.raises(ResponseClosedError):
            await write
    for write in (
        store.finish("x", {}),
        store.update("x", {}),
        store.append_events("x", numbered(0)),
        store.delete("x"),
    ):
        with pytest.raises(ResponseNotFoundError):
            await write


async def test_an_id_is_taken_once(store, target):
    await add(store, "r")
    with pytest.raises(DuplicateIdError) as caught:
        await store.create("r", {"id": "r"})
    assert caught.value.id == "r"
    await audit(target)


async def test_a_chain_is_all_input_and_output_in_order(store):
    for number in range(6):
        await add(store, f"r{number}", previous=f"r{number - 1}" if number else None)
    await add(store, "branch", previous="r2")
    names = [f"r{number}_{side}" for number in range(6) for side in ("in", "out")]
    assert [entry["id"] for entry in await store.chain("r5")] == names
    assert [entry["id"] for entry in await store.chain("branch")] == [*names[:6], "branch_in", "branch_out"]
    assert (await store.retrieve("branch")).previous_response_id == "r2"


async def test_a_chain_ends_where_one_was_deleted(store):
    for number in range(4):
        await add(store, f"r{number}", previous=f"r{number - 1}" if number else None)
    await store.delete("r1")
    assert len(await store.chain("r0")) == 2
    for id_ in ("r1", "r2", "r3"):
        with pytest.raises(PreviousResponseNotFoundError) as caught:
            await store.chain(id_)
        assert caught.value.id == "r1"
    with pytest.raises(PreviousResponseNotFoundError):
        await store.create("r4", {}, previous_response_id="r1")
    # another one with its id is not the one that they went on from
    await add(store, "r1")
    with pytest.raises(PreviousResponseNotFoundError):
        await store.chain("r2")
    assert (await store.retrieve("r3")).previous_response_id == "r2"


async def test_nothing_goes_on_from_what_is_in_progress(store):
    await store.create("r", {})
    with pytest.raises(ResponseActiveError):
        await store.chain("r")
    await store.create("child", {}, previous_response_id="r")
    await store.finish("child", {})
    with pytest.raises(ResponseActiveError) as caught:
        await store.chain("child")
    assert caught.value.id == "r"
    await store.finish("r", {})
    assert await store.chain("child") == []


async def test_a_chain_is_bounded(store, monkeypatch):
    monkeypatch.setattr(chain_module, "MAX_CHAIN", 3)
    monkeypatch.setattr(chain_module, "MAX_CHAIN_BYTES", 1 << 20)
    for number in range(4):
        await add(store, f"r{number}", previous=f"r{number - 1}" if number else None)
    assert len(await store.chain("r2")) == 6
    with pytest.raises(ChainTooLongError, match="more than 3 responses"):
        await store.chain("r3")
    await add(store, "large", previous="r0", inputs=[item("x", "y" * (1 << 20))])
    with pytest.raises(ChainTooLongError, match="more than 1 MiB"):
        await store.chain("large")


async def test_input_items_in_pages(store):
    ids = [f"i{number}" for number in range(10)]
    await store.create("r", {}, input_items=[*map(item, ids)])
    await store.finish("r", {}, [item("out")])

    page = await store.input_items("r", limit=4, order="asc")
    assert ([entry["id"] for entry in page.items], page.has_more) == (ids[:4], True)
    assert (page.first_id, page.last_id) == ("i0", "i3")
    page = await store.input_items("r", limit=4, order="asc", after="i5", before="i9")
    assert ([entry["id"] for entry in page.items], page.has_more) == (["i6", "i7", "i8"], False)
    page = await store.input_items("r", limit=3)
    assert ([entry["id"] for entry in page.items], page.has_more) == (["i9", "i8", "i7"], True)
    page = await store.input_items("r", limit=3, after="i5", before="i2")
    assert ([entry["id"] for entry in page.items], page.has_more) == (["i4", "i3"], False)
    page = await store.input_items("r", after="i0")
    assert (page.items, page.has_more, page.first_id, page.last_id) == ([], False, None, None)

    with pytest.raises(ItemNotFoundError):
        await store.input_items("r", after="out")
    with pytest.raises(StoreValueError, match="limit"):
        await store.input_items("r", limit=0)
    with pytest.raises(StoreValueError, match="order"):
        await store.input_items("r", order="up; DROP TABLE cvllm_records")
    with pytest.raises(ResponseNotFoundError):
        await store.input_items("x")


async def test_a_stream_is_resumed_where_it_was(store, target):
    await store.create("r", {})
    assert await store.events_after("r", -1) == []
    await store.append_events("r", numbered(0, 1, 2))
    await store.append_events("r", numbered(3))
    await store.append_events("r", numbered(4, 7))
    for after in range(-1, 9):
        left = [number for number in (0, 1, 2, 3, 4, 7) if number > after]
        assert await store.events_after("r", after) == numbered(*left)
        assert await store.events_after("r", after, limit=2) == numbered(*left[:2])
    await store.finish("r", {})
    assert len(await store.events_after("r", 0)) == 5
    await audit(target)
    with pytest.raises(ResponseNotFoundError):
        await store.events_after("x", 0)


async def test_events_grow(store):
    await store.create("r", {})
    await store.append_events("r", numbered(5))
    for wrong in (
        [],
        [{}],
        [{"sequence_number": "6"}],
        [{"sequence_number": True}],
        numbered(7, 7),
        numbered(5),
        numbered(-1),
    ):
        with pytest.raises(StoreValueError):
            await store.append_events("r", wrong)
    assert await store.events_after("r", -1) == numbered(5)


async def test_items_are_found_by_id_wherever_they_are(store, monkeypatch):
    await add(store, "r0", inputs=[item("a", "old"), item("b")])
    await add(store, "r1", inputs=[item("a", "new")])
    await store.conversations.create("c", items=[item("of_c")])
    found = await store.find_items(["a", "r0_out", "of_c", "missing", "a\0"])
    assert found == {"a": item("a", "new"), "r0_out": item("r0_out"), "of_c": item("of_c")}
    assert await store.find_items([]) == {}
    await store.delete("r1")
    assert (await store.find_items(["a"]))["a"] == item("a", "old")
    monkeypatch.setattr(items_module, "MAX_FOUND_BYTES", 100)
    with pytest.raises(ItemsTooLargeError):
        await store.find_items(["a", "b"])


async def test_items_need_ids(store):
    for wrong in ({}, {"id": None}, {"id": ""}, {"id": "x" * 257}, "item", None):
        with pytest.raises(StoreValueError):
            await store.create("r", {}, input_items=[wrong])
    for wrong in ("", "x" * 257, None):
        with pytest.raises(StoreValueError):
            await store.create(wrong, {})
    with pytest.raises(DuplicateIdError):
        await store.create("r", {}, input_items=[item("a"), item("b"), item("a")])
    assert (await store.usage()).responses == 0


async def test_any_text_may_be_asked_for(store):
    for id_ in ("", "x" * 100_000, "\0", "\ud800", "'; --", "%", "r\0", "R"):
        with pytest.raises(ResponseNotFoundError):
            await store.retrieve(id_)
        with pytest.raises(PreviousResponseNotFoundError):
            await store.create("new", {}, previous_response_id=id_)


HOSTILE = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(
    ["\0", "a\0b", "\ud800", "\ud83d\ude00", "\udc00\ud800", "\\u0000", "\\", "\x7f\x80\u2028", "\U0010ffff"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | HOSTILE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HOSTILE, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(id_=HOSTILE.filter(bool), value=JSON, key=HOSTILE)
async def test_values_come_back_as_they_were(store, id_, value, key):
    items = [{"id": id_, key: value} if key != "id" else {"id": id_}]
    await store.create(id_, {"x": value, key: 1}, input_items=items, settings={key: value})
    await store.append_events(id_, [{"sequence_number": 1, "text": key}])
    await store.finish(id_, {"y": value}, items)
    found = await store.retrieve(id_)
    assert (found.id, found.response, found.settings) == (id_, {"y": value}, {key: value})
    assert await store.chain(id_) == items * 2
    assert await store.events_after(id_, 0) == [{"sequence_number": 1, "text": key}]
    page = await store.input_items(id_)
    assert list(page.items) == items
    assert (await store.input_items(id_, after=id_)).items == []
    await store.delete(id_)


async def test_large_and_deep_values(store, target):
    large = item("large", "\0é\ud800" * 1_000_000)
    await add(store, "r", inputs=[large])
    assert (await store.chain("r"))[0] == large

    deep = item("deep", json.loads("[" * 498 + "]" * 498))
    await add(store, "deep", inputs=[deep])
    assert (await store.chain("deep"))[0] == deep
    for levels in (502, 5_000, 100_000):
        value = []
        for _ in range(levels):
            value = [value]
        with pytest.raises(StoreValueError, match="deeper than 500 levels"):
            await store.create("deeper", {}, input_items=[item("x", value)])
        while value:  # freeing it level after level takes no stack
            value = value.pop()
    with pytest.raises(StoreValueError, match="no JSON"):
        await store.create("set", {"x": {1}})
    await audit(target)


async def test_200_tasks_at_once(store, target):
    async def work(number):
        id_ = f"r{number}"
        await add(store, id_, previous=f"r{number - 100}" if number >= 100 else None)
        if number >= 150:
            assert [entry["id"] for entry in await store.chain(id_)][2:] == [f"{id_}_in", f"{id_}_out"]
            await store.delete(id_)

    await asyncio.gather(*map(work, range(100)))
    await asyncio.gather(*map(work, range(100, 200)))
    assert (await store.usage()).responses == 150
    await audit(target)


async def test_what_is_cancelled_is_whole_or_not_there(store, target):
    await add(store, "first")

    async def work(number):
        id_ = f"r{number}"
        await store.chain("first")
        await store.create(id_, {"id": id_}, input_items=[item(f"{id_}_{entry}") for entry in range(20)])
        await store.finish(id_, {"id": id_, "status": "completed"}, [item(f"{id_}_out")])

    tasks = [asyncio.create_task(work(number)) for number in range(60)]
    for number, task in enumerate(tasks):
        if number % 4:
            await asyncio.sleep(0.001)
            task.cancel()
            task.cancel()
    await asyncio.wait(tasks)
    assert sum(task.cancelled() for task in tasks) > 10
    assert not [task for task in tasks if not task.cancelled() and task.exception()]
    for number in range(60):
        try:
            found = await store.retrieve(f"r{number}")
        except ResponseNotFoundError:
            continue
        assert len((await store.input_items(f"r{number}", limit=100)).items) == 20
        if not found.active:
            assert len(await store.chain(f"r{number}")) == 21
    await add(store, "afterwards")
    await audit(target)


async def test_what_has_begun_is_done_before_its_caller_is_cancelled(store):
    for use in (
        store.create("r", {}),
        store.append_events("r", numbered(0)),
        store.finish("r", {"status": "completed"}),
    ):
        task = asyncio.create_task(use)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await store.retrieve("r")).response == {"status": "completed"}
    assert await store.events_after("r", -1) == numbered(0)


async def test_in_memory():
    async with await ResponseStore.open(":memory:") as store, await ResponseStore.open(":memory:") as other:
        await asyncio.gather(*(add(store, f"r{number}") for number in range(20)))
        assert (await store.usage()).responses == 20
        assert (await other.usage()).responses == 0
