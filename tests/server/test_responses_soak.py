"""Many clients with a slow MCP server, of which half leave midway: no task, connection, page or lock is left."""

import asyncio
import json
import os
import random
import time

import httpx
import pytest
from conftest import wait_until_idle
from live_server import live_server
from responses_api import ResponsesApi
from websockets.asyncio.client import connect

from server.settings import ServerSettings


def descriptors():
    return len(os.listdir("/proc/self/fd"))


async def tasks_of(server):
    """Tasks in the server's loop, but for uvicorn's own and the one that counts."""

    async def count():
        return len(asyncio.all_tasks())

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(count(), server.loop))


class Client:
    """Asks for a response that takes a while; an impatient one leaves while a tool runs."""

    def __init__(self, http, api, tool, number):
        self._http = http
        self._api = api
        self._impatient = number % 2 == 1
        self._kind = (self.plain, self.streamed, self.background, self.socket)[number // 2 % 4]
        text = "slowly" if self._impatient else "take a while"
        self._body = {"model": api.model, "input": text, "tools": [tool]}

    async def run(self):
        await self._kind()

    async def plain(self):
        try:
            patience = random.uniform(0.5, 2) if self._impatient else 120
            answer = await self._http.post("/v1/responses", json=self._body, timeout=patience)
            assert answer.json()["status"] == "completed", answer.text
        except httpx.ReadTimeout:
            assert self._impatient

    async def streamed(self):
        async with self._http.stream("POST", "/v1/responses", json={**self._body, "stream": True}) as answer:
            await self._read(line.removeprefix("data: ") async for line in answer.aiter_lines() if "data: {" in line)

    async def background(self):
        created = await self._http.post("/v1/responses", json={**self._body, "background": True})
        path = f"/v1/responses/{created.json()['id']}"
        async with self._http.stream("GET", path, params={"stream": "true"}) as answer:
            await self._read(line.removeprefix("data: ") async for line in answer.aiter_lines() if "data: {" in line)
        if self._impatient:
            assert (await self._http.post(f"{path}/cancel")).json()["status"] == "cancelled"
        else:
            assert (await self._http.get(path)).json()["status"] == "completed"

    async def socket(self):
        async with connect(self._api.url.replace("http", "ws") + "/v1/responses") as socket:
            await socket.send(json.dumps({"type": "response.create", **self._body}))
            await self._read(text async for text in socket)

    async def _read(self, texts):
        """Events up to the last one, or to the call where patience ends."""
        async for text in texts:
            kind = json.loads(text)["type"]
            if kind == "response.completed" or (self._impatient and kind == "response.mcp_call.in_progress"):
                return
            assert kind not in ("error", "response.failed", "response.incomplete"), text
        raise AssertionError("the stream ended early")


async def crowd(api, tool, count):
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=api.url, timeout=300, limits=limits) as http:
        clients = [Client(http, api, tool, number) for number in range(count)]
        await asyncio.gather(*(client.run() for client in clients))


async def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.slow)])
def test_nothing_is_left(scripted_engine, mcp_urls, count):
    tool = {"type": "mcp", "server_label": "sample", "server_url": mcp_urls["sample"], "require_approval": "never"}

    async def scenario(server):
        api = ResponsesApi(server.url)
        await crowd(api, tool, 8)  # what is made once is made now
        await until(lambda: _is_idle(scripted_engine))
        await asyncio.sleep(0.5)  # for connections to close
        tasks, files = await tasks_of(server), descriptors()
        await crowd(api, tool, count)

        async def as_before():
            return await tasks_of(server) <= tasks and descriptors() <= files and await _is_idle(scripted_engine)

        await until(as_before)
        assert await _active(server) == 0

    with live_server(scripted_engine, ServerSettings(mcp_allow=("127.0.0.1",))) as server:
        asyncio.run(scenario(server))
    wait_until_idle(scripted_engine)


async def _is_idle(engine):
    """Whether the engine has nothing to do and all its pages."""
    stats = engine.stats()
    return stats.running == stats.waiting == 0 and stats.pages_free == stats.pages_total


async def _active(server):
    """How many responses the store takes for running."""
    from sqlalchemy import func, select

    from cvllm_jax.responses.store.schema import RecordState, records

    async def count():
        store = await server.state.open_store()
        async with store._database.read() as connection:
            query = select(func.count()).where(records.c.state == RecordState.ACTIVE)
            return (await connection.execute(query)).scalar_one()

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(count(), server.loop))
