"""A response on its way: the task that makes it, and its events for any number of readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any

from cvllm_jax.responses.types import ResponseEvent

__all__ = ["Publish", "Run"]

#: Tells readers the next events.
type Publish = Callable[[Sequence[ResponseEvent]], None]


class Run:
    """One response's work and what it has told so far.

    Events are kept for as long as the run is: readers may come late, leave, and come back.

    Arguments:
        work: makes the response; it is given a function that publishes events. It tells the client about its
            own failures by events and raises only what has to end a request before anything was published.
    """

    def __init__(self, work: Callable[[Publish], Coroutine[Any, Any, None]]) -> None:
        self._events: list[ResponseEvent] = []
        self._news = asyncio.Event()
        self._task = asyncio.ensure_future(work(self._publish))
        self._task.add_done_callback(lambda _: self._wake())

    def _publish(self, events: Sequence[ResponseEvent]) -> None:
        self._events.extend(events)
        if events:
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    @property
    def done(self) -> bool:
        return self._task.done()

    def on_end(self, tell: Callable[[], object]) -> None:
        """Call ``tell`` when the work has ended, however that was."""
        self._task.add_done_callback(lambda _: tell())

    async def begun(self) -> None:
        """Wait for the first event; raises what ended the work before it."""
        while not self._events and not self._task.done():
            await self._changed()
        if not self._events:
            await self._task

    async def events(self, starting_after: int = -1) -> AsyncGenerator[ResponseEvent, None]:
        """Events with a greater sequence number, those to come too, up to the end of the work.

        Raises what ended the work, unless it was cancelled.
        """
        at = starting_after + 1
        while True:
            while at < len(self._events):
                yield self._events[at]
                at += 1
            if self._task.done():
                break
            await self._changed()
        if not self._task.cancelled():
            self._task.result()

    async def wait(self) -> None:
        """Wait for the end of the work; cancelling the wait leaves the work running."""
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    async def cancel(self) -> None:
        """End the work and wait for its clean-up."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _changed(self) -> None:
        news = self._news
        if not self._task.done():
            await news.wait()
