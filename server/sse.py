"""Server-sent events: a response that follows its client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Protocol

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.connection import cancel_and_wait, client_gone, is_disconnect
from server.errors import ApiError, as_api_error, error_body
from server.state import ServerState, stopping_error

__all__ = ["EventStream", "Framing", "Items"]


class Items(Protocol):
    """What is streamed, and can be ended before its end."""

    def __aiter__(self) -> AsyncIterator[BaseModel]: ...

    async def aclose(self) -> None: ...


class Framing:
    """How one stream's items are written: as ``data:`` lines, an error as ``{"error": ...}``.

    An API whose events have names or numbers derives its own.
    """

    def event(self, item: BaseModel) -> str:
        return f"data: {item.model_dump_json()}\n\n"

    def error(self, error: ApiError) -> str:
        return f"data: {json.dumps(error_body(error))}\n\n"


class EventStream(Response):
    """The items of ``stream`` as server-sent events, then ``data: [DONE]``.

    While nothing is sent for ``keep_alive_seconds`` it sends comments. When the client disconnects
    or the server stops, the stream is closed, which ends its request. What fails midway is sent as
    an event: the status has been sent long before.
    """

    media_type = "text/event-stream"

    def __init__(self, stream: Items, state: ServerState, framing: Framing | None = None) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._stream = stream
        self._state = state
        self._framing = framing or Framing()
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = asyncio.ensure_future(self._send_events(send))
        gone = asyncio.ensure_future(client_gone(receive))
        stopped = asyncio.ensure_future(self._state.stopped.wait())
        keep_alive = self._state.settings.keep_alive_seconds
        try:
            while not events.done():
                done, _ = await asyncio.wait(
                    {events, gone, stopped}, timeout=keep_alive, return_when=asyncio.FIRST_COMPLETED
                )
                if gone in done:
                    return
                if stopped in done and not events.done():
                    await cancel_and_wait(events)
                    await self._send_end(send, stopping_error())
                elif not done and asyncio.get_running_loop().time() - self._last_sent >= keep_alive:
                    await self._write(send, ": keep-alive\n\n")
        finally:
            await cancel_and_wait(events, gone, stopped)
            await self._stream.aclose()

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for item in self._stream:
                await self._write(send, self._framing.event(item))
                # Neither line above waits while items are at hand and the socket takes them: other
                # clients, and the news that this one is gone, get their turn here.
                await asyncio.sleep(0)
        except Exception as error:
            if not is_disconnect(error):
                await self._send_end(send, error)
        else:
            await self._send_end(send)

    async def _send_end(self, send: Send, error: Exception | None = None) -> None:
        text = "data: [DONE]\n\n"
        if error is not None:
            text = self._framing.error(as_api_error(error)) + text
        await self._write(send, text, last=True)

    async def _write(self, send: Send, text: str, *, last: bool = False) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": not last})
        self._last_sent = asyncio.get_running_loop().time()
