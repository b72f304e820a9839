"""A chat completion as a stream of chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from cvllm_jax.openai.answers import AnswerReader
from cvllm_jax.openai.chunk_stream import ChunkStream, cancel_all, merged
from cvllm_jax.openai.chunks import Completion
from cvllm_jax.openai.types import ChatCompletionChunk
from cvllm_jax.params import GenerationOutput, TokenUpdate

if TYPE_CHECKING:
    from cvllm_jax.engine.stream import GenerationStream, SyncGenerationStream

__all__ = ["ChatCompletionStream", "output_of", "sync_chunks", "sync_outputs"]

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
            yield completion.usage_chunk([choice.output for choice in choices], reasoning_tokens)
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
            if self.reader.ended:
                self._stream.cancel()
                await self._stream.finish()
        for chunk in self._completion.last_chunks(self._index, self.output, self.reader):
            yield chunk

    @property
    def output(self) -> GenerationOutput:
        return self.reader.part_of(self._stream.output)


async def output_of(stream: GenerationStream, reader: AnswerReader) -> GenerationOutput:
    """The answer in a stream, which is ended where the answer ends."""
    async for update in stream:
        reader.feed(update.text, tokens=int(update.token is not None))
        if reader.ended:
            stream.cancel()
            await stream.finish()
    return reader.part_of(stream.output)


def sync_outputs(completion: Completion, streams: Sequence[SyncGenerationStream]) -> list[GenerationOutput]:
    """:func:`output_of` for blocking streams, all at the same time."""
    readers = [completion.reader() for _ in streams]
    for index, update in _updates_in_turn(streams, readers):
        if update is not None:
            readers[index].feed(update.text, tokens=int(update.token is not None))
    return [reader.part_of(stream.output) for reader, stream in zip(readers, streams)]


def _updates_in_turn(
    streams: Sequence[SyncGenerationStream], readers: Sequence[AnswerReader]
) -> Generator[tuple[int, TokenUpdate | None]]:
    """Index and token, stream by stream in turn, and None in a token's place where a stream ends.

    A stream is ended where the reader that is fed with it ends.
    """
    active = dict(enumerate(streams))
    while active:
        for index, stream in list(active.items()):
            update = next(stream, None)
            yield index, update
            if update is None:
                del active[index]
            elif readers[index].ended:
                stream.cancel()
                stream.finish()


def sync_chunks(completion: Completion, streams: Sequence[SyncGenerationStream]) -> Generator[ChatCompletionChunk]:
    """The chunks of blocking engine streams, the choices in turn: all are generated at the same time."""
    try:
        for index in range(len(streams)):
            yield completion.first_chunk(index)
        readers = [completion.reader() for _ in streams]
        outputs = {}
        for index, update in _updates_in_turn(streams, readers):
            if update is not None:
                yield from completion.token_chunks(index, update, readers[index])
            else:
                outputs[index] = readers[index].part_of(streams[index].output)
                yield from completion.last_chunks(index, outputs[index], readers[index])
        if completion.include_usage:
            reasoning_tokens = sum(reader.reasoning_tokens for reader in readers)
            yield completion.usage_chunk([outputs[index] for index in sorted(outputs)], reasoning_tokens)
    finally:
        cancel_all(streams)
