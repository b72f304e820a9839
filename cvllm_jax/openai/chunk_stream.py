"""An answer as a stream of chunks, whatever a chunk is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from cvllm_jax.engine.stream import GenerationStream, SyncGenerationStream

__all__ = ["ChunkStream", "Start", "cancel_all", "merged"]

#: Starts the engine's streams, and gives the chunks that come of them.
type Start[C] = Callable[[], Awaitable[tuple[AsyncGenerator[C, None], Sequence[GenerationStream]]]]


class ChunkStream[C]:
    """An async iterator of chunks, awaitable to itself.

    The request starts when the stream is awaited or first iterated; what is wrong with it is
    raised there. Leaving the stream early (``aclose``, ``async with``, cancelling the task, or
    dropping it) ends the request and frees its pages.
    """

    def __init__(self, start: Start[C]) -> None:
        self._start = start
        self._streams: Sequence[GenerationStream] = ()
        self._chunks: AsyncGenerator[C, None] | None = None
        self._closed = False

    def __await__(self) -> Generator[Any, None, Self]:
        return self._started().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> C:
        if self._closed:
            raise StopAsyncIteration
        await self._started()
        assert self._chunks is not None
        return await anext(self._chunks)

    async def aclose(self) -> None:
        """End the request, if it still runs. Safe to call twice and while another task iterates."""
        self._closed = True
        cancel_all(self._streams)
        chunks, self._chunks = self._chunks, None
        if chunks is not None:
            # It refuses while another task iterates; that task then sees the request's end.
            with suppress(RuntimeError):
                await chunks.aclose()

    async def __aenter__(self) -> Self:
        return await self._started()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _started(self) -> Self:
        if self._chunks is None and not self._closed:
            self._chunks, self._streams = await self._start()
        return self


async def merged[C](parts: Sequence[AsyncGenerator[C, None]]) -> AsyncGenerator[C, None]:
    """The chunks of several choices as they come."""
    queue: asyncio.Queue[C | None] = asyncio.Queue()

    async def pump(part: AsyncGenerator[C, None]) -> None:
        async for chunk in part:
            queue.put_nowait(chunk)

    async def pump_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(pump(part))
        finally:
            queue.put_nowait(None)

    pumps = asyncio.create_task(pump_all())
    try:
        while (chunk := await queue.get()) is not None:
            yield chunk
        try:
            await pumps
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
    finally:
        pumps.cancel()


def cancel_all(streams: Sequence[GenerationStream] | Sequence[SyncGenerationStream]) -> None:
    for stream in streams:
        stream.cancel()
