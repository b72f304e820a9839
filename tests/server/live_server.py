"""Servers on real sockets: uvicorn in a thread, as `cvllm-jax serve` runs it but for the signals."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn

from server.app import create_app


@dataclass
class LiveServer:
    url: str
    app: object
    loop: asyncio.AbstractEventLoop

    @property
    def state(self):
        return self.app.state.server

    def call(self, function):
        """Run ``function`` in the server's loop."""
        self.loop.call_soon_threadsafe(function)

    def chat(self, timeout=10, headers=None, **fields):
        body = {"model": "org/stub", "messages": [{"role": "user", "content": "hi"}], **fields}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=timeout, headers=headers)


@contextmanager
def live_server(engine=None, settings=None):
    app = create_app(engine, settings)
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="websockets-sansio"))
    loop = asyncio.new_event_loop()

    async def serve():
        await server.serve([bound])
        await app.state.server.aclose()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield LiveServer(f"http://127.0.0.1:{bound.getsockname()[1]}", app, loop)
    finally:
        server.should_exit = True
        loop.call_soon_threadsafe(app.state.server.stop)
        thread.join(10)
        assert not thread.is_alive()
        loop.close()
