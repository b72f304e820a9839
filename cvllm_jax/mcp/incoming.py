"""What a server's messages may be like, before the SDK looks into them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Self

from mcp.shared.message import SessionMessage
from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, JSONRPCResponse

__all__ = ["MAX_MESSAGE_PARTS", "bounded_messages"]

#: Fields and items of a message, down to where the SDK stops checking types. It takes some 40 microseconds for each
#: that is wrong: a message of 4 MiB could hold more than a million of them, and stop the event loop for a minute.
MAX_MESSAGE_PARTS = 10_000
_DEPTH = 4


@asynccontextmanager
async def bounded_messages(transport: AbstractAsyncContextManager[Any]) -> AsyncGenerator[Any]:
    """``transport`` of the SDK, with errors in the place of results that have too many parts."""
    async with transport as (read_stream, write_stream):
        yield _Incoming(read_stream), write_stream


class _Incoming:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @property
    def last_context(self) -> Any:
        return getattr(self._stream, "last_context", None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while True:
            item = await self._stream.__anext__()
            if not isinstance(item, SessionMessage) or _is_small(item.message):
                return item
            if isinstance(item.message, JSONRPCResponse):
                text = f"its answer has more than {MAX_MESSAGE_PARTS} parts, the most that are read"
                error = ErrorData(code=INTERNAL_ERROR, message=text)
                return SessionMessage(JSONRPCError(jsonrpc="2.0", id=item.message.id, error=error))

    async def receive(self) -> Any:
        return await self.__anext__()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _is_small(message: Any) -> bool:
    body = getattr(message, "result", None) or getattr(message, "params", None) or {}
    checked = [value for name, value in body.items() if name != "structuredContent"]  # any JSON will do there
    count = len(checked)
    for _ in range(_DEPTH):
        children: list[Any] = []
        for value in checked:
            if isinstance(value, dict | list):
                count += len(value)
                if count > MAX_MESSAGE_PARTS:
                    return False
                children += value.values() if isinstance(value, dict) else value
        checked = children
    return True
