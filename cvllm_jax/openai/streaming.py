"""A chat completion as a stream of chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cvllm_jax.openai.chunks import Completion
from cvllm_jax.openai.types import ChatCompletionChunk

if TYPE_CHECKING:
    from cvllm_jax.engine.stream import GenerationStream, SyncGenerationStream

__all__ = ["ChatCompletionStream", "sync_chunks"]

#: Renders the prompt and starts one engine stream a choice.
type Start = Callable[[], Awaitable[tuple[Completion, Sequence[GenerationStream]]]]


class ChatCompletionStream:
    """An async iterator of :class:`ChatCompletionChunk`, awaitable to itself.

    The request starts when the stream is awaited or first iterated; what is wrong with it is
    raised there. Leaving the stream early (``aclose``, ``async with``, cancelling the task, or
    dropping it) ends the request and frees its pages.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self._streams: Sequence[GenerationStream] = ()
        self._chunks: AsyncGenerator[ChatCompletionChunk, None] | None = None
        self._closed = False

    def __await__(self) -> Generator[Any, None, Self]:
        return self._started().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChatCompletionChunk:
        if self._closed:
            raise StopAsyncIteration
        await self._started()
        assert self._chunks is not None
        return await anext(self._chunks)

    async def aclose(self) -> None:
        """End the request, if it still runs. Safe to call twice and while another task iterates."""
        self._closed = True
        _cancel(self._streams)
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
            completion, self._streams = await self._start()
            self._chunks = _chunks(completion, self._streams)
        return self


async def _chunks(
    completion: Completion, streams: Sequence[GenerationStream]
) -> AsyncGenerator[ChatCompletionChunk, None]:
    try:
        for index in range(len(streams)):
            yield completion.first_chunk(index)
        choices = [_Choice(completion, index, stream) for index, stream in enumerate(streams)]
        merged = choices[0].chunks() if len(choices) == 1 else _merge(choices)
        async with aclosing(merged):
            async for chunk in merged:
                yield chunk
        if completion.include_usage:
            reasoning_tokens = sum(choice.reader.reasoning_tokens for choice in choices)
            yield completion.usage_chunk([stream.output for stream in streams], reasoning_tokens)
    finally:
        _cancel(streams)


class _Choice:
    """One choice on its way."""

    def __init__(self, completion: Completion, index: int, stream: GenerationStream) -> None:
        self.reader = completion.reader()
        self._completion = completion
        self._index = index
        self._stream = stream

    async def chunks(self) -> AsyncGenerator[ChatCompletionChunk, None]:
        async for update in self._stream:
            for chunk in self._completion.token_chunks(self._index, update, self.reader):
                yield chunk
        for chunk in self._completion.last_chunks(self._index, self._stream.output, self.reader):
            yield chunk


async def _merge(choices: Sequence[_Choice]) -> AsyncGenerator[ChatCompletionChunk, None]:
    """The chunks of several choices as they come."""
    queue: asyncio.Queue[ChatCompletionChunk | None] = asyncio.Queue()

    async def pump(choice: _Choice) -> None:
        async for chunk in choice.chunks():
            queue.put_nowait(chunk)

    async def pump_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for choice in choices:
                    group.create_task(pump(choice))
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


def sync_chunks(completion: Completion, streams: Sequence[SyncGenerationStream]) -> Generator[ChatCompletionChunk]:
    """The chunks of blocking engine streams, the choices in turn: all are generated at the same time."""
    try:
        for index in range(len(streams)):
            yield completion.first_chunk(index)
        readers = [completion.reader() for _ in streams]
        active = dict(enumerate(streams))
        while active:
            for index, stream in list(active.items()):
                update = next(stream, None)
                if update is None:
                    yield from completion.last_chunks(index, stream.output, readers[index])
                    del active[index]
                else:
                    yield from completion.token_chunks(index, update, readers[index])
        if completion.include_usage:
            reasoning_tokens = sum(reader.reasoning_tokens for reader in readers)
            yield completion.usage_chunk([stream.output for stream in streams], reasoning_tokens)
    finally:
        _cancel(streams)


def _cancel(streams: Sequence[GenerationStream] | Sequence[SyncGenerationStream]) -> None:
    for stream in streams:
        stream.cancel()
