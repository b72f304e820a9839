"""Conversations: items that responses read and add to, one response at a time."""

import asyncio

import pytest
from store_audit import audit

from cvllm_jax.responses.store import (
    ConversationLockedError,
    ConversationNotFoundError,
    DuplicateIdError,
    ItemNotFoundError,
    ResponseNotFoundError,
    ResponseStore,
)

pytestmark = pytest.mark.anyio


def item(id_, text="hello"):
    return {"id": id_, "type": "message", "role": "user", "content": text}


async def ids(store, id_="c"):
    return [entry["id"] for entry in await store.conversations.all_items(id_)]


async def test_a_conversation_from_start_to_end(store, target):
    conversations = store.conversations
    made = await conversations.create("c", metadata={"topic": "a"}, items=[item("1"), item("2")])
    assert made == await conversations.retrieve("c")
    assert made.metadata == {"topic": "a"}
    assert (await conversations.update("c", {"topic": "b" * 100})).metadata == {"topic": "b" * 100}
    assert (await conversations.update("c", {})).created_at == made.created_at

    await conversations.add_items("c", [item("3", "x"), item("4")])
    assert await ids(store) == ["1", "2", "3", "4"]
    assert await conversations.item("c", "3") == item("3", "x")
    page = await conversations.items("c", limit=2, after="4")
    assert ([entry["id"] for entry in page.items], page.has_more) == (["3", "2"], True)

    await audit(target)
    await conversations.delete_item("c", "3")
    await conversations.delete_item("c", "4")
    await conversations.add_items("c", [item("3")])
    assert await ids(store) == ["1", "2", "3"]
    await audit(target)
    await conversations.delete("c")
    assert (await store.usage()).bytes == 0
    await audit(target)


async def test_what_is_not_there(store):
    conversations = store.conversations
    for use in (
        conversations.retrieve("c"), conversations.update("c", {}), conversations.delete("c"),
        conversations.add_items("c", []), conversations.items("c"), conversations.all_items("c"),
        conversations.item("c", "1"), conversations.delete_item("c", "1"), conversations.lock("c", "r"),
        conversations.unlock("c", "r"), store.create("r", {}, conversation_id="c"),
    ):  # fmt: skip
        with pytest.raises(ConversationNotFoundError, match="no conversation with the id 'c'"):
            await use
    await conversations.create("c", items=[item("1")])
    for use in (conversations.item("c", "2"), conversations.delete_item("c", "2"), conversations.items("c", after="2")):
        with pytest.raises(ItemNotFoundError):
            await use
    with pytest.raises(ResponseNotFoundError):
        await store.retrieve("c")


async def test_ids_are_taken_once(store, target):
    conversations = store.conversations
    with pytest.raises(DuplicateIdError):
        await conversations.create("c", items=[item("1"), item("1")])
    await conversations.create("c", items=[item("1")])
    for use in (
        conversations.create("c"),
        conversations.add_items("c", [item("2"), item("1")]),
        conversations.add_items("c", [item("2"), item("2")]),
        store.create("r", {}, input_items=[item("1")], conversation_id="c"),
    ):
        with pytest.raises(DuplicateIdError):
            await use
    assert await ids(store) == ["1"]
    await conversations.add_items("c", [item("2")])  # nothing has kept the lock
    await audit(target)


async def test_one_response_at_a_time(store, target):
    conversations = store.conversations
    await conversations.create("c", items=[item("1")])
    await store.create("r", {}, input_items=[item("in")], conversation_id="c")
    for use in (
        store.create("other", {}, conversation_id="c"), conversations.lock("c", "other"),
        conversations.unlock("c", "other"), conversations.add_items("c", [item("2")]),
        conversations.delete_item("c", "1"), conversations.delete("c"),
    ):  # fmt: skip
        with pytest.raises(ConversationLockedError, match="in use by another response"):
            await use
    await conversations.update("c", {"still": "possible"})
    assert await ids(store) == ["1"]

    await store.finish("r", {}, [item("out")])
    assert await ids(store) == ["1", "in", "out"]
    assert (await store.retrieve("r")).conversation_id == "c"
    await store.create("other", {}, conversation_id="c")
    await store.finish("other", {})
    await audit(target)


async def test_locked_before_the_response_is_created(store):
    conversations = store.conversations
    await conversations.create("c")
    await conversations.lock("c", "r")
    await conversations.lock("c", "r")
    await store.create("r", {}, input_items=[item("in")], conversation_id="c")
    await store.finish("r", {}, [item("out")])
    assert await ids(store) == ["in", "out"]


async def test_a_response_that_is_not_stored(store, target):
    conversations = store.conversations
    await conversations.create("c")
    await conversations.lock("c", "r")
    with pytest.raises(ConversationLockedError):
        await conversations.lock("c", "other")
    await conversations.unlock("c", "r", [item("in"), item("out")])
    assert await ids(store) == ["in", "out"]
    with pytest.raises(ConversationLockedError):
        await conversations.unlock("c", "r")
    await conversations.delete("c")
    await audit(target)


async def test_a_response_that_is_deleted_while_it_runs(store):
    conversations = store.conversations
    await conversations.create("c")
    await store.create("r", {}, conversation_id="c")
    await store.delete("r")
    with pytest.raises(ResponseNotFoundError):
        await store.finish("r", {}, [item("out")])
    await conversations.unlock("c", "r")
    assert await ids(store) == []


async def test_one_of_many_gets_the_conversation(store, target):
    await store.conversations.create("c")

    async def respond(number):
        try:
            await store.create(f"r{number}", {}, input_items=[item(f"in{number}")], conversation_id="c")
        except ConversationLockedError:
            return 0
        await store.finish(f"r{number}", {}, [item(f"out{number}")])
        return 1

    finished = sum(await asyncio.gather(*map(respond, range(40))))
    found = await ids(store)
    assert len(found) == 2 * finished >= 2
    assert [entry[:2] for entry in found] == ["in", "ou"] * finished
    assert [entry[2:] for entry in found[::2]] == [entry[3:] for entry in found[1::2]]
    await audit(target)


async def test_two_stores_of_one_database(target):
    async with await ResponseStore.open(target) as one, await ResponseStore.open(target) as other:
        await one.conversations.create("c")
        await one.create("r", {"status": "in_progress"}, conversation_id="c")
        with pytest.raises(ConversationLockedError):
            await other.conversations.lock("c", "r")
        await other.sweep()
        assert (await other.retrieve("r")).active
        await one.aclose()
        # nothing has been swept: the lock of one that is gone is worth nothing
        await other.conversations.lock("c", "other")
        assert (await other.retrieve("r")).interrupted
        await other.conversations.unlock("c", "other")
