"""Servers on real sockets: ASGI applications in a thread, and functions that get a connection's raw bytes."""

import asyncio
import json
import socket
import threading
import time
from contextlib import asynccontextmanager, contextmanager, suppress

import uvicorn


@contextmanager
def serving(app, port=0):
    """The origin of ``app``, served by uvicorn."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
        bound.close()


@asynccontextmanager
async def raw_server(handle, ssl=None):
    """The origin of a server that gives each connection's reader and writer to ``handle``."""
    tasks = set()

    async def connected(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await handle(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=ssl)
    try:
        yield f"http{'s' if ssl else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class FakeServer:
    """Speaks just enough of the 2025 protocol, and does something odd where a test says so.

    ``odd[what](server, writer, request)`` writes the answer to a request, where ``what`` is a JSON-RPC method, "GET" or
    "DELETE"; what it returns as True is answered properly after all.
    """

    def __init__(self, **odd):
        self.odd = {name.replace("_", "/"): answer for name, answer in odd.items()}
        self.requests = []

    def count(self, method):
        return sum(request["message"].get("method") == method for request in self.requests)

    @asynccontextmanager
    async def served(self, ssl=None):
        async with raw_server(self.handle, ssl) as origin:
            yield f"{origin}/mcp"

    async def handle(self, reader, writer):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            message = json.loads(body) if body else {}
            method = head.split()[0]
            request = {"method": method, "path": head.split()[1], "headers": headers, "message": message}
            self.requests.append(request)
            what = message.get("method", "answer") if method == "POST" else method
            odd = self.odd.get(what)
            if odd is None or await odd(self, writer, request):
                await self.answer(writer, request)
            if writer.is_closing():
                return

    async def answer(self, writer, request):
        message = request["message"]
        match message.get("method"):
            case "initialize":
                result = {
                    "protocolVersion": "2025-11-25",
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "fake", "version": "1"},
                }
                await respond(writer, result_of(message, result), headers={"Mcp-Session-Id": "s"})
            case "tools/list":
                tools = [
                    {"name": "act", "inputSchema": {"type": "object"}},
                    {"name": "look", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}},
                ]
                await respond(writer, result_of(message, {"tools": tools}))
            case "tools/call":
                await respond(writer, text_result(message, "done"))
            case None if request["method"] != "POST":
                await respond(writer, b"", status=405)
            case _ if "id" in message:
                error = {"code": -32601, "message": "Method not found"}
                await respond(writer, {"jsonrpc": "2.0", "id": message["id"], "error": error})
            case _:
                await respond(writer, b"", status=202)


def result_of(message, result):
    return {"jsonrpc": "2.0", "id": message["id"], "result": result}


def text_result(message, text):
    return result_of(message, {"content": [{"type": "text", "text": text}]})


async def respond(writer, body, *, status=200, headers=()):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    head = {"Content-Type": "application/json", "Content-Length": len(body), **dict(headers)}
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    writer.write("\r\n".join(lines).encode() + body)
    await writer.drain()


def once(answer):
    """An odd answer for the first time only."""
    times = 0

    async def odd(server, writer, request):
        nonlocal times
        times += 1
        return True if times > 1 else await answer(server, writer, request)

    return odd


def status(code, **headers):
    async def odd(server, writer, request):
        await respond(writer, b"", status=code, headers=headers)

    return odd


async def hang_up(server, writer, request):
    writer.close()


async def stay_silent(server, writer, request):
    await asyncio.sleep(60)
