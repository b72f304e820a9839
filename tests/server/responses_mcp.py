"""MCP servers for tests of the Responses API: two whose tools have the same names, and some that misbehave."""

import asyncio
import threading
from contextlib import contextmanager

from mcp.server.mcpserver import MCPServer


def searcher(name):
    server = MCPServer(name, log_level="CRITICAL")

    @server.tool()
    def search(text: str) -> str:
        """Searches."""
        return f"{name} has {text}"

    @server.tool()
    def echo(text: str) -> str:
        return text

    return server


@contextmanager
def in_thread(fake):
    """The URL of a ``FakeServer`` that runs in a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    served = fake.served()
    try:
        yield asyncio.run_coroutine_threadsafe(served.__aenter__(), loop).result(10)
        asyncio.run_coroutine_threadsafe(served.__aexit__(None, None, None), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def stream_without_end(server, writer, request):
    """Notifications and comments, and never an answer."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    while True:
        writer.write(b": still there\n\n" * 100)
        await writer.drain()
        await asyncio.sleep(0.01)


async def answer_without_end(server, writer, request):
    """A result that goes on and on."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{")
    while True:
        writer.write(b'"x": "' + b"y" * 65536 + b'",')
        await writer.drain()
