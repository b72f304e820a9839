"""What is kept, against a model of plain dictionaries."""

import asyncio
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from store_audit import audit

from cvllm_jax.errors import ConfigError
from cvllm_jax.responses.store import (
    ConversationLockedError,
    ConversationNotFoundError,
    DuplicateIdError,
    PreviousResponseNotFoundError,
    ResponseActiveError,
    ResponseClosedError,
    ResponseNotFoundError,
    ResponseStore,
    StoreLimitError,
    StoreLimits,
)
from cvllm_jax.responses.store import store as store_module

LIMITS = StoreLimits(max_responses=4, max_conversations=2, max_age_secs=60, max_bytes=1500)
NAMES = st.sampled_from("abcdefg")
SIZES = st.sampled_from([0, 10, 300])


def size(value):
    return len(json.dumps(value, separators=(",", ":")))


class Entry:
    """A response or a conversation of the model."""

    def __init__(self, kind, used_at, order, own, **rest):
        self.kind, self.used_at, self.order, self.own = kind, used_at, order, own
        self.active, self.lost, self.parent, self.previous, self.conversation, self.holder = (
            False, False, None, None, None, None,
        )  # fmt: skip
        self.inputs, self.outputs, self.events = [], [], []
        self.__dict__.update(rest)

    @property
    def bytes(self):
        return sum(map(size, [*self.own, *self.inputs, *self.outputs, *self.events]))

    @property
    def items(self):
        return self.inputs + self.outputs


class StoreMachine(RuleBasedStateMachine):
    """The model does what the store is said to do; both are asked for everything after each step."""

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.target = self.new_target()
        self.now, self.count, self.entries = 1000.0, 0, {}
        self.store = self.run(self.open())

    def new_target(self):
        return str(Path(self.folder.name) / "store.sqlite3")

    def run(self, work):
        return self.runner.run(work)

    def open(self):
        return ResponseStore.open(self.target, LIMITS, clock=lambda: self.now)

    def teardown(self):
        self.run(self.store.aclose())
        self.run(audit(self.target))
        self.runner.close()
        self.folder.cleanup()

    # the model

    def oldest(self, kind=None):
        idle = [key for key, entry in self.entries.items() if not entry.active and kind in (None, entry.kind)]
        return min(idle, key=lambda key: (self.entries[key].used_at, self.entries[key].order), default=None)

    def evict(self):
        for kind, limit in (("r", LIMITS.max_responses), ("c", LIMITS.max_conversations)):
            while sum(entry.kind == kind for entry in self.entries.values()) > limit and (key := self.oldest(kind)):
                del self.entries[key]
        while sum(entry.bytes for entry in self.entries.values()) > LIMITS.max_bytes and (key := self.oldest()):
            del self.entries[key]

    def expire(self):
        for key, entry in list(self.entries.items()):
            if not entry.active and entry.used_at < self.now - LIMITS.max_age_secs:
                del self.entries[key]
        self.evict()

    def new(self, kind, *own, **rest):
        self.count += 1
        return Entry(kind, self.now, self.count, own, **rest)

    def item(self, length):
        self.count += 1
        return {"id": f"i{self.count}", "text": "x" * length}

    # what is done

    @rule(name=NAMES, previous=st.none() | NAMES, conversation=st.none() | NAMES, length=SIZES)
    def create(self, name, previous, conversation, length):
        items = [self.item(length)]
        work = self.store.create(
            name, {"status": "in_progress"}, input_items=items, previous_response_id=previous,
            conversation_id=conversation, settings={"n": length},
        )  # fmt: skip
        parent, talk = self.entries.get(("r", previous)), self.entries.get(("c", conversation))
        for fails, error in (
            (previous is not None and parent is None, PreviousResponseNotFoundError),
            (conversation is not None and talk is None, ConversationNotFoundError),
            (talk is not None and talk.active and talk.holder != name, ConversationLockedError),
            (("r", name) in self.entries, DuplicateIdError),
        ):
            if fails:
                with pytest.raises(error):
                    self.run(work)
                return
        self.run(work)
        entry = self.new("r", {"status": "in_progress"}, {"n": length}, active=True, inputs=items)
        entry.previous, entry.parent, entry.conversation = previous, parent, conversation
        if talk and not talk.active:
            talk.active, talk.holder, talk.used_at = True, name, self.now
        self.entries["r", name] = entry
        self.evict()

    @rule(name=NAMES, length=SIZES)
    def finish(self, name, length):
        entry = self.entries.get(("r", name))
        if entry is None or not entry.active:
            with pytest.raises(ResponseNotFoundError if entry is None else ResponseClosedError):
                self.run(self.store.finish(name, {}))
            return
        items, response = [self.item(length)], {"status": "completed", "text": "y" * length}
        talk = self.entries.get(("c", entry.conversation))
        work = self.store.finish(name, response, items)
        added = entry.inputs + items
        if entry.bytes + size(response) - size(entry.own[0]) + sum(map(size, items)) > LIMITS.max_bytes or (
            talk and talk.bytes + sum(map(size, added)) > LIMITS.max_bytes
        ):
            with pytest.raises(StoreLimitError):
                self.run(work)
            return
        self.run(work)
        entry.own, entry.outputs, entry.active = (response, entry.own[1]), items, False
        if talk:
            talk.inputs, talk.used_at = talk.inputs + added, self.now
            if talk.holder == name:
                talk.active, talk.holder = False, None
        self.evict()

    @rule(name=NAMES, count=st.integers(1, 5))
    def append_events(self, name, count):
        entry = self.entries.get(("r", name))
        if entry and entry.active:
            start = sum(map(len, entry.events))
            batch = [{"sequence_number": start + number} for number in range(count)]
            if entry.bytes + size(batch) <= LIMITS.max_bytes:
                self.run(self.store.append_events(name, batch))
                entry.events.append(batch)
                self.evict()

    @rule(name=NAMES)
    def delete(self, name):
        if self.entries.pop(("r", name), None):
            self.run(self.store.delete(name))
        else:
            with pytest.raises(ResponseNotFoundError):
                self.run(self.store.delete(name))

    @rule(name=NAMES, length=SIZES)
    def create_conversation(self, name, length):
        if ("c", name) not in self.entries:
            items = [self.item(length)]
            self.entries["c", name] = self.new("c", {"m": name}, inputs=items)
            self.evict()
            work = self.store.conversations.create(name, metadata={"m": name}, items=items)
            if ("c", name) in self.entries:
                self.run(work)
            else:  # everything else is in progress
                with pytest.raises(ConversationNotFoundError):
                    self.run(work)

    @rule(name=NAMES, length=SIZES)
    def add_to_conversation(self, name, length):
        entry, items = self.entries.get(("c", name)), [self.item(length)]
        work = self.store.conversations.add_items(name, items)
        if entry is None or entry.active:
            with pytest.raises(ConversationNotFoundError if entry is None else ConversationLockedError):
                self.run(work)
        elif entry.bytes + sum(map(size, items)) > LIMITS.max_bytes:
            with pytest.raises(StoreLimitError):
                self.run(work)
        else:
            self.run(work)
            entry.inputs, entry.used_at = entry.inputs + items, self.now
            self.evict()

    @rule(name=NAMES)
    def delete_from_conversation(self, name):
        entry = self.entries.get(("c", name))
        if entry and not entry.active and entry.inputs:
            self.run(self.store.conversations.delete_item(name, entry.inputs[0]["id"]))
            entry.inputs, entry.used_at = entry.inputs[1:], self.now
            self.evict()

    @rule(name=NAMES)
    def unlock(self, name):
        entry = self.entries.get(("c", name))
        if entry and entry.active:
            self.run(self.store.conversations.unlock(name, entry.holder))
            entry.active, entry.holder, entry.used_at = False, None, self.now
            self.evict()

    @rule(seconds=st.integers(1, 30))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def sweep(self):
        self.run(self.store.sweep())
        self.expire()

    @rule()
    def reopen(self):
        self.run(self.store.aclose())
        self.store = self.run(self.open())
        for entry in self.entries.values():
            entry.lost |= entry.active and entry.kind == "r"
            entry.active, entry.holder = False, None
        self.expire()

    # what is seen

    @invariant()
    def everything_is_as_the_model_says(self):
        self.run(self.compare())

    async def compare(self):
        usage = await self.store.usage()
        kinds = [entry.kind for entry in self.entries.values()]
        assert (usage.responses, usage.conversations) == (kinds.count("r"), kinds.count("c"))
        assert usage.bytes == sum(entry.bytes for entry in self.entries.values())
        for (kind, name), entry in self.entries.items():
            if kind == "c":
                assert await self.store.conversations.all_items(name) == entry.inputs
                continue
            found = await self.store.retrieve(name)
            assert (found.active, found.interrupted) == (entry.active, entry.lost)
            assert found.response["status"] == ("incomplete" if entry.lost else entry.own[0]["status"])
            assert await self.store.events_after(name, -1) == [event for batch in entry.events for event in batch]
            await self.compare_chain(name, entry)

    async def compare_chain(self, name, entry):
        links = [entry]
        while links[-1].parent is not None and links[-1].parent in self.entries.values():
            links.append(links[-1].parent)
        if links[-1].parent is not None:
            with pytest.raises(PreviousResponseNotFoundError) as caught:
                await self.store.chain(name)
            assert caught.value.id == links[-1].previous
        elif any(link.active for link in links):
            with pytest.raises(ResponseActiveError):
                await self.store.chain(name)
        else:
            assert await self.store.chain(name) == [item for link in reversed(links) for item in link.items]


StoreMachine.TestCase.settings = settings(max_examples=10, stateful_step_count=20, deadline=None)
TestStoreAgainstModel = StoreMachine.TestCase


@pytest.mark.anyio
async def test_the_oldest_go_first(target):
    async with await ResponseStore.open(target, StoreLimits(max_responses=3)) as store:
        for number in range(6):
            await store.create(f"r{number}", {})
            if number:
                await store.finish(f"r{number}", {})
        await store.retrieve("r0")  # in progress
        for number in (1, 2, 3):
            with pytest.raises(ResponseNotFoundError):
                await store.retrieve(f"r{number}")
        await store.finish("r0", {})
        assert (await store.usage()).responses == 3


@pytest.mark.anyio
async def test_what_is_too_old_goes_by_itself(target, monkeypatch):
    monkeypatch.setattr(store_module, "SWEEP_SECS", 0.02)
    now = 1000.0
    async with await ResponseStore.open(target, StoreLimits(max_age_secs=60), clock=lambda: now) as store:
        await store.create("done", {})
        await store.finish("done", {})
        await store.create("running", {})
        await store.conversations.create("old")
        await store.conversations.create("used")
        now = 1050.0
        await store.conversations.add_items("used", [{"id": "i"}])
        now = 1070.0
        for _ in range(500):
            if (await store.usage()).responses == 1:
                break
            await asyncio.sleep(0.01)
        assert (await store.usage()).responses == 1
        assert (await store.retrieve("running")).active
        assert await store.conversations.all_items("used") == [{"id": "i"}]
        with pytest.raises(ConversationNotFoundError):
            await store.conversations.retrieve("old")
    await audit(target)


@pytest.mark.anyio
async def test_limits_hold_while_many_write(target):
    limits = StoreLimits(max_responses=10, max_bytes=20_000)

    async def work(store, name):
        await store.create(name, {}, input_items=[{"id": "i", "text": "x" * 1000}])
        await store.finish(name, {}, [{"id": "o", "text": "y" * 1000}])

    async with (
        await ResponseStore.open(target, limits) as one,
        await ResponseStore.open(target, limits) as other,
    ):
        await asyncio.gather(*(work(store, f"{n}{i}") for i in range(20) for n, store in (("a", one), ("b", other))))
        usage = await one.usage()
        assert usage == await other.usage()
        assert usage.responses <= 10
        assert 15_000 < usage.bytes <= 20_000
    await audit(target)


@pytest.mark.anyio
async def test_what_is_larger_than_the_store_is_refused(store, target):
    large = [{"id": "x", "text": "x" * 2000}]
    async with await ResponseStore.open(target, StoreLimits(max_bytes=2000)) as small:
        await small.conversations.create("c")
        await small.create("r", {})
        for use in (
            small.create("large", {}, input_items=large), small.update("r", large[0]), small.finish("r", {}, large),
            small.append_events("r", [{"sequence_number": 0} | large[0]]),
            small.conversations.add_items("c", large), small.conversations.create("d", items=large),
            small.conversations.update("c", large[0]),
        ):  # fmt: skip
            with pytest.raises(StoreLimitError, match="max_bytes is 2,000"):
                await use
        assert (await small.retrieve("r")).active
        assert (await small.usage()).conversations == 1
    await audit(target)


def test_limits_are_positive():
    for wrong in ({"max_responses": 0}, {"max_bytes": -1}, {"max_age_secs": float("nan")}):
        with pytest.raises(ConfigError, match="must be more than 0"):
            StoreLimits(**wrong)
