"""Work that is not cut in two when whoever waits for it is cancelled."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["whole"]


def whole[**P, T](method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let a method run to its end before a cancellation reaches its caller.

    A statement that is cancelled still runs in its thread or its server, and may leave a connection behind with a
    transaction, and its locks, that nobody ends any more.
    """

    @functools.wraps(method)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.create_task(method(*args, **kwargs))
        cancelled = False
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            if not task.cancelled():
                task.exception()  # has been looked at: asyncio need not report it
            raise asyncio.CancelledError
        return task.result()

    return run
