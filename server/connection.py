"""Work that lasts as long as its client stays connected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive
from starlette.websockets import WebSocketDisconnect

from cvllm_jax.errors import IoError
from server.state import ServerState, stopping_error

__all__ = ["cancel_and_wait", "client_gone", "is_disconnect", "while_connected"]


def is_disconnect(error: Exception) -> bool:
    """Whether sending failed because the client is gone. Some errors of this library are OSErrors, too."""
    return isinstance(error, WebSocketDisconnect) or (isinstance(error, OSError) and not isinstance(error, IoError))


async def client_gone(receive: Receive) -> None:
    """Return when the client disconnects. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected[T](work: Awaitable[T], receive: Receive, state: ServerState) -> T:
    """Run ``work``; cancel it when the client disconnects or the server stops.

    Raises ClientDisconnect, or ApiError 503 when the server stops.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(client_gone(receive))
    stopped = asyncio.ensure_future(state.stopped.wait())
    try:
        await asyncio.wait({task, gone, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise stopping_error()
    finally:
        await cancel_and_wait(task, gone, stopped)


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs and let it clean up; results and errors are dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
