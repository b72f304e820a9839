"""The Responses API without HTTP: limits, failures of its parts, and cancellation at any moment."""

import asyncio
import json

import pytest
from agent_script import run
from conftest import wait_until_idle

from cvllm_jax.errors import McpConnectionError
from cvllm_jax.openai import RequestError
from cvllm_jax.responses.config import ResponsesConfig
from cvllm_jax.responses.conversations import ConversationRequest, Conversations
from cvllm_jax.responses.service import ResponsesService
from cvllm_jax.responses.store import ResponseStore, StoreLimitError, StoreLimits, StoreUnavailableError
from cvllm_jax.responses.types import ResponseRequest


class Open:
    """A service over a new store in memory, closed at the end."""

    def __init__(self, adapter, limits=None, **config):
        self._adapter = adapter
        self._limits = limits
        self._config = ResponsesConfig(mcp_allow=["127.0.0.1"], **config)

    async def __aenter__(self):
        self.store = await ResponseStore.open(":memory:", self._limits)
        self.service = ResponsesService(self._adapter, self.store, self._config)
        return self

    async def __aexit__(self, *_):
        await self.service.aclose()
        await self.store.aclose()

    async def create(self, text, **fields):
        return await self.service.create(request(text, **fields))

    async def conversation(self):
        return (await Conversations(self.store).create(ConversationRequest())).id

    async def is_unlocked(self, conversation):
        await self.store.conversations.lock(conversation, "resp_test")
        await self.store.conversations.unlock(conversation, "resp_test")


def request(text, **fields):
    return ResponseRequest.parse({"model": "m", "input": text, **fields})


@pytest.fixture
def odd(mcp_urls):
    return {"type": "mcp", "server_label": "odd", "server_url": mcp_urls["odd"], "require_approval": "never"}


async def more_than(counter, name, count):
    while counter[name] <= count:  # noqa: ASYNC110  # another thread counts
        await asyncio.sleep(0.005)


def test_a_tool_that_takes_too_long(adapter, odd):
    async def scenario():
        async with Open(adapter, tool_timeout_secs=0.3) as opened:
            response = await opened.create("slowly", tools=[odd])
            (called,) = (item for item in response.output if item.type == "mcp_call")
            assert (called.status, called.output) == ("failed", None)
            assert "0.3 seconds" in called.error["content"][0]["text"]
            assert response.output_text == "That did not work."

    run(scenario())


def test_a_result_that_is_too_long_is_cut(adapter, mcp_urls):
    async def scenario():
        async with Open(adapter, max_tool_output_chars=3) as opened:
            tool = {"type": "mcp", "server_label": "fs", "server_url": mcp_urls["fs"], "require_approval": "never"}
            response = await opened.create("Read the README.md file", tools=[tool])
            (called,) = (item for item in response.output if item.type == "mcp_call")
            assert called.output.startswith("# D\n[cut: the first 3 of ")

    run(scenario())


def test_turns_have_a_limit(adapter, odd):
    async def scenario():
        async with Open(adapter, max_turns=1) as opened:
            response = await opened.create("use nothing", tools=[odd])
            assert (response.status, response.incomplete_details) == ("incomplete", None)

    run(scenario())


def test_a_server_that_is_down_is_an_error_of_its_own(adapter):
    tool = {"type": "mcp", "server_label": "down", "server_url": "http://127.0.0.1:9/mcp"}

    async def scenario():
        async with Open(adapter) as opened:
            conversation = await opened.conversation()
            with pytest.raises(McpConnectionError, match="'down'"):
                await opened.create("x", tools=[tool], conversation=conversation)
            await opened.is_unlocked(conversation)
            response = await opened.create("x", tools=[tool], background=True)
            events = [event async for event in await opened.service.resume(response.id)]
            assert events[-1].type == "response.failed"
            assert (await opened.service.retrieve(response.id)).status == "failed"

    run(scenario())


def test_what_is_too_large_to_be_stored(adapter):
    """The client is told, nothing stays in progress, and the conversation can be used."""

    async def scenario():
        async with Open(adapter, StoreLimits(max_bytes=4000)) as opened:
            conversation = await opened.conversation()
            with pytest.raises(StoreLimitError, match="more than the store holds"):
                await opened.create("at length", conversation=conversation)
            await opened.is_unlocked(conversation)
            stream = await opened.service.stream(request("at length"))
            events = [event async for event in stream]
            assert [event.type for event in events][-1] == "error"
            numbers = [event.sequence_number for event in events]
            assert numbers == list(range(len(numbers)))
            stored = await opened.service.retrieve(events[0].response.id)
            assert (stored.status, stored.error.code, stored.output) == ("failed", "server_error", [])

    run(scenario())


def test_a_store_that_breaks_midway(adapter, monkeypatch):
    async def scenario():
        async with Open(adapter) as opened:

            async def broken(*arguments, **options):
                raise StoreUnavailableError("the disk is gone")

            monkeypatch.setattr(opened.store, "append_events", broken)
            response = await opened.create("at length", background=True)
            events = [event async for event in await opened.service.resume(response.id)]
            assert events[-1].type in ("error", "response.failed")
            assert [event.sequence_number for event in events] == list(range(len(events)))
            monkeypatch.setattr(opened.store, "create", broken)
            with pytest.raises(StoreUnavailableError, match="disk"):
                await opened.create("x")

    run(scenario())


@pytest.mark.parametrize("kind", ["plain", "conversation", "unstored", "background", "stream"])
def test_cancelled_at_any_moment(adapter, agent_engine, kind):
    """Nothing is left: no request, no lock, and no response that is taken for running."""

    async def use(opened, conversation):
        fields = {
            "plain": {}, "conversation": {"conversation": conversation},
            "unstored": {"conversation": conversation, "store": False},
            "background": {"background": True, "conversation": conversation}, "stream": {"conversation": conversation},
        }[kind]  # fmt: skip
        if kind != "stream":
            return await opened.create("x", **fields)
        stream = await opened.service.stream(request("x", **fields))
        try:
            return [event async for event in stream]
        finally:
            await stream.aclose()

    async def scenario():
        async with Open(adapter) as opened:
            conversation = await opened.conversation()
            moment, ended = 0, False
            while not ended:
                task = asyncio.create_task(use(opened, conversation))
                for _ in range(moment):
                    await asyncio.sleep(0.0005)
                ended = task.done()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                for creation in list(opened.service._background.values()):
                    await creation.run.cancel()
                await opened.is_unlocked(conversation)
                moment += 1
            for creation in opened.service._background.values():
                await creation.run.cancel()
            assert moment > 5
            assert await active(opened.store) == 0
            assert asyncio.all_tasks() == {asyncio.current_task(), opened.store._sweeper}

    run(scenario())
    wait_until_idle(agent_engine)


async def active(store):
    from sqlalchemy import func, select

    from cvllm_jax.responses.store.schema import RecordState, records

    async with store._database.read() as connection:
        query = select(func.count()).where(records.c.state == RecordState.ACTIVE)
        return (await connection.execute(query)).scalar_one()


def test_cancelling_stops_the_tools(adapter, odd):
    from mcp_servers import SLOW

    async def scenario():
        async with Open(adapter) as opened:
            begun, cancelled = SLOW["begun"], SLOW["cancelled"]
            response = await opened.create("slowly", tools=[odd], background=True)
            await more_than(SLOW, "begun", begun)
            ended = await opened.service.cancel(response.id)
            assert ended.status == "cancelled"
            (called,) = (item for item in ended.output if item.type == "mcp_call")
            assert called.status == "incomplete"
            await more_than(SLOW, "cancelled", cancelled)
            after = await opened.create("hello", previous_response_id=response.id)
            assert after.output_text == "Hello there."

    run(scenario())


def test_closing_ends_what_runs_in_the_background(adapter, agent_engine):
    async def scenario():
        async with Open(adapter) as opened:
            created = [await opened.create("at length", background=True) for _ in range(3)]
            await opened.service.aclose()
            wait_until_idle(agent_engine)
            statuses = {(await opened.service.retrieve(response.id)).status for response in created}
            assert statuses <= {"cancelled", "completed", "incomplete"}
            assert await active(opened.store) == 0

    run(scenario())


def test_the_oldest_turns_are_left_out(adapter):
    """As few as need be, and neither what comes before the first one nor the last one."""

    async def scenario():
        async with Open(adapter) as opened:
            turns = [{"role": "user", "content": f"{number} " + "word " * 200} for number in range(20)]
            items = [{"role": "system", "content": "Be brief."}, *turns, {"role": "user", "content": "hello"}]
            with pytest.raises(RequestError, match="maximum context length"):
                await opened.create(items)
            response = await opened.create(items, truncation="auto", instructions="Be kind.")
            assert response.output_text == "Hello there."
            limit = adapter.engine.model_info().max_sequence_length
            assert limit // 2 < response.usage.input_tokens <= limit - limit // 4
            roomy = await opened.create(items, truncation="auto", max_output_tokens=limit // 2)
            assert roomy.usage.input_tokens < limit // 2
            with pytest.raises(RequestError, match="maximum context length"):
                await opened.create("word " * 4000, truncation="auto")
            # it stays whole in the store
            stored = await opened.store.chain(response.id)
            assert len(stored) == len(items) + 1
            short = await opened.create("hello", truncation="auto")
            plain = await opened.create("hello")
            assert short.usage.input_tokens == plain.usage.input_tokens

    run(scenario())


def test_a_compacted_conversation_that_was_too_long(adapter):
    async def scenario():
        async with Open(adapter) as opened:
            items = [{"role": "user", "content": f"{number} " + "word " * 200} for number in range(20)]
            compacted = await opened.service.compact(request(items))
            assert [item.type for item in compacted.output] == ["message"] * 20 + ["compaction"]
            assert "secret" not in json.dumps(compacted.model_dump(mode="json"))

    run(scenario())
