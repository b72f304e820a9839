"""Streams: the order of chunks, what they add up to, and what happens when one is left early."""

import asyncio
import contextlib
import gc
import json
import time

import openai.types.chat as sdk
import pytest
from stub_engine import Script, StubEngine

from cvllm_jax.openai import ChatCompletionRequest, GenerationFailedError, Message, OpenAIAdapter, RequestError
from cvllm_jax.params import FinishReason

TEXT = "Hello, wörld 👋."


def request(**fields):
    return ChatCompletionRequest(model="m", messages=[Message.user("hi")], **fields)


async def collect(adapter, **fields):
    return [chunk async for chunk in adapter.chat_completion_stream(request(**fields))]


def stream_both_ways(stub, **fields):
    adapter = OpenAIAdapter(stub)
    yield asyncio.run(collect(adapter, **fields))
    yield list(adapter.chat_completion_stream_sync(request(**fields)))


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_chunks_come_in_openais_order(stub, n, include_usage, logprobs):
    fields = {"n": n, "logprobs": logprobs, "top_logprobs": 1 if logprobs else None}
    for chunks in stream_both_ways(stub, stream_options={"include_usage": include_usage}, **fields):
        wire = [json.loads(chunk.model_dump_json()) for chunk in chunks]
        for chunk in wire:
            sdk.ChatCompletionChunk.model_validate(chunk, strict=True)
        assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in wire}) == 1
        if include_usage:
            last = wire.pop()
            assert last["choices"] == []
            assert last["usage"]["completion_tokens"] == n * len(TEXT.encode())
            assert all(chunk["usage"] is None for chunk in wire)
        else:
            assert all("usage" not in chunk for chunk in wire)
        for index in range(n):
            mine = [chunk["choices"][0] for chunk in wire if chunk["choices"][0]["index"] == index]
            assert mine[0]["delta"] == {"role": "assistant", "content": ""}
            assert mine[-1]["delta"] == {}
            assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["stop"]
            assert "".join(choice["delta"].get("content", "") for choice in mine) == TEXT
            entries = [choice["logprobs"]["content"] for choice in mine if choice["logprobs"]]
            assert bytes(entry[0]["bytes"][0] for entry in entries) == (TEXT.encode() if logprobs else b"")


def test_the_stream_is_awaitable_to_itself(stub):
    async def scenario():
        stream = OpenAIAdapter(stub).chat_completion_stream(request())
        assert await stream is stream
        assert await stream is stream
        assert len(stub.seen) == 1
        first = await anext(stream)
        assert first.choices[0].delta.role == "assistant"
        await stream.aclose()
        await stream.aclose()
        assert [chunk async for chunk in stream] == []

    asyncio.run(scenario())


def test_a_refusal_shows_when_the_stream_is_awaited(stub):
    async def scenario():
        with pytest.raises(RequestError):
            await OpenAIAdapter(stub).chat_completion_stream(request(top_logprobs=3))
        with pytest.raises(RequestError):
            async for _ in OpenAIAdapter(stub).chat_completion_stream(request(logit_bias={"999": 1})):
                pass

    asyncio.run(scenario())


@pytest.mark.parametrize("n", [1, 2])
def test_a_failure_midway_is_raised_after_the_text(n):
    stub = StubEngine(Script(finish_reason=FinishReason.Error("boom")))

    async def scenario():
        text = ""
        with pytest.raises(GenerationFailedError, match="boom"):
            async for chunk in OpenAIAdapter(stub).chat_completion_stream(request(n=n)):
                text += chunk.choices[0].delta.content or ""
        return text

    assert TEXT[:5] in asyncio.run(scenario())


async def leave_by_break(stream):
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break


async def leave_by_aclose(stream):
    await leave_by_break(stream)
    await stream.aclose()


async def leave_by_context(stream):
    async with stream:
        await leave_by_break(stream)


async def leave_by_cancel(stream):
    async def read():
        async for _ in stream:
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def close_while_another_task_reads(stream):
    task = asyncio.create_task(leave_all_read(stream))
    await asyncio.sleep(0.05)
    await stream.aclose()
    with contextlib.suppress(Exception):
        await task


async def leave_all_read(stream):
    async for _ in stream:
        pass


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_aclose, leave_by_context, leave_by_cancel, close_while_another_task_reads]
)
def test_leaving_a_stream_ends_its_requests(leave, n):
    stub = StubEngine(Script(forever=True, delay=0.005))

    async def scenario():
        stream = OpenAIAdapter(stub).chat_completion_stream(request(n=n))
        await leave(stream)
        del stream
        gc.collect()
        await asyncio.sleep(0.01)

    asyncio.run(scenario())
    deadline = time.monotonic() + 2
    while stub.stats().running:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_leaving_a_blocking_stream_ends_its_request():
    stub = StubEngine(Script(forever=True, delay=0.005))
    chunks = OpenAIAdapter(stub).chat_completion_stream_sync(request())
    next(chunks)
    next(chunks)
    chunks.close()
    deadline = time.monotonic() + 2
    while stub.stats().running:
        assert time.monotonic() < deadline
        time.sleep(0.005)
