"""One request's updates on their way from the engine's thread to its caller."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Self

from cvllm_jax.errors import GenerationError
from cvllm_jax.params import GenerationOutput, RequestHandle, RequestUpdate, TokenUpdate

__all__ = ["GenerationStream", "Mailbox", "SyncGenerationStream"]


class Mailbox:
    """An unbounded queue from the engine's thread to one thread or task. Putting never blocks.

    Bounded in fact by the request's ``max_tokens``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None, *, only_end: bool = False) -> None:
        self._updates: deque[RequestUpdate] = deque()
        self._arrived = threading.Condition()
        self._loop = loop
        self._event = asyncio.Event()
        self._only_end = only_end
        """Keep nothing but the final update: for callers who want the whole output."""

    def put(self, update: RequestUpdate) -> None:
        if self._only_end and isinstance(update, RequestUpdate.Token):
            return
        with self._arrived:
            wake = not self._updates
            self._updates.append(update)
            self._arrived.notify()
        if wake and self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._event.set)
            except RuntimeError:  # the loop closed in between: nobody is listening
                return

    def get(self) -> RequestUpdate:
        with self._arrived:
            while not self._updates:
                self._arrived.wait()
            return self._updates.popleft()

    async def get_async(self) -> RequestUpdate:
        while True:
            with self._arrived:
                if self._updates:
                    return self._updates.popleft()
                self._event.clear()
            await self._event.wait()


class _Stream:
    """What the two kinds of stream share. Dropping a stream that has not ended cancels its request."""

    def __init__(self, handle: RequestHandle, mailbox: Mailbox, cancel: Callable[[RequestHandle], None]) -> None:
        self.handle = handle
        self._mailbox = mailbox
        self._cancel = cancel
        self._output: GenerationOutput | None = None

    @property
    def output(self) -> GenerationOutput:
        """The whole output, once the stream has ended."""
        if self._output is None:
            raise GenerationError("the stream has not ended yet")
        return self._output

    def cancel(self) -> None:
        """End the request; the stream then ends with FinishReason.Cancelled and what was made."""
        if self._output is None:
            self._cancel(self.handle)

    def _accept(self, update: RequestUpdate) -> TokenUpdate | None:
        """A token to hand out, or None at the end."""
        match update:
            case RequestUpdate.Token(token, text, logprob, _, top_logprobs):
                return TokenUpdate(token, text, logprob, top_logprobs)
            case RequestUpdate.Completed(output) | RequestUpdate.Failed(_, output):
                self._output = output
        return None

    def __del__(self) -> None:
        if getattr(self, "_output", self) is None:
            self._cancel(self.handle)


class GenerationStream(_Stream):
    """Async iterator of TokenUpdate; ``output`` is there when it has ended.

    ``async for update in engine.generate_stream(...)`` and ``stream = await engine.generate_stream(...)`` both work.
    Cancelling the task that waits for it, ``aclose()`` or leaving ``async with`` ends the request.
    """

    def __await__(self) -> Generator[None, None, Self]:
        return self
        yield

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenUpdate:
        if self._output is not None:
            raise StopAsyncIteration
        try:
            update = self._accept(await self._mailbox.get_async())
        except asyncio.CancelledError:
            self.cancel()
            raise
        if update is None:
            raise StopAsyncIteration
        return update

    async def finish(self) -> GenerationOutput:
        """Wait for the end, passing over the tokens in between."""
        async for _ in self:
            pass
        return self.output

    async def aclose(self) -> None:
        """End the request, if it still runs, and free its pages."""
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


class SyncGenerationStream(_Stream):
    """Iterator of TokenUpdate for callers without an event loop."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TokenUpdate:
        if self._output is not None:
            raise StopIteration
        try:
            update = self._accept(self._mailbox.get())
        except KeyboardInterrupt:
            self.cancel()
            raise
        if update is None:
            raise StopIteration
        return update

    def finish(self) -> GenerationOutput:
        """Wait for the end, passing over the tokens in between."""
        for _ in self:
            pass
        return self.output

    def close(self) -> None:
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
