"""A chat completion as a stream of chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from cvllm_jax.openai.chunk_stream import ChunkStream, cancel_all, merged
from cvllm_jax.openai.chunks import Completion
from cvllm_jax.openai.types import ChatCompletionChunk

if TYPE_CHECKING:
    from cvllm_jax.engine.stream import GenerationStream, SyncGenerationStream

__all__ = ["ChatCompletionStream", "sync_chunks"]

#: Renders the prompt and starts one engine stream a choice.
type ChatStart = Callable[[], Awaitable[tuple[Completion, Sequence[GenerationStream]]]]


class ChatCompletionStream(ChunkStream[ChatCompletionChunk]):
    """An async iterator of :class:`ChatCompletionChunk`, awaitable to itself; see :class:`ChunkStream`."""

    def __init__(self, start: ChatStart) -> None:
        async def begin() -> tuple[AsyncGenerator[ChatCompletionChunk, None], Sequence[GenerationStream]]:
            completion, streams = await start()
            return _chunks(completion, streams), streams

        super().__init__(begin)


async def _chunks(
    completion: Completion, streams: Sequence[GenerationStream]
) -> AsyncGenerator[ChatCompletionChunk, None]:
    try:
        for index in range(len(streams)):
            yield completion.first_chunk(index)
        choices = [_Choice(completion, index, stream) for index, stream in enumerate(streams)]
        parts = choices[0].chunks() if len(choices) == 1 else merged([choice.chunks() for choice in choices])
        async with aclosing(parts):
            async for chunk in parts:
                yield chunk
        if completion.include_usage:
            reasoning_tokens = sum(choice.reader.reasoning_tokens for choice in choices)
            yield completion.usage_chunk([stream.output for stream in streams], reasoning_tokens)
    finally:
        cancel_all(streams)


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
        cancel_all(streams)
