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

    Arguments:
        keep: keep all events for as long as the run is kept itself: readers may come late, leave, and come back.
            Otherwise there is one reader, and what it has read is gone.
        work: makes the response; it is given a function that publishes events. It tells the client about its
            own failures by events and raises only what has to end a request before anything was published.
    """

    def __init__(self, work: Callable[[Publish], Coroutine[Any, Any, None]], *, keep: bool) -> None:
        self._keep = keep
        self._events: list[ResponseEvent] = []
        self._dropped = 0
        """How many events were read and are gone."""
        self._news = asyncio.Event()
        self._cancelled = False
        self._task = asyncio.ensure_future(work(self._publish))
        self._task.add_done_callback(self._ended)

    def _publish(self, events: Sequence[ResponseEvent]) -> None:
        self._events.extend(events)
        if events:
            self._wake()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # readers are told; where there are none, nobody needs to know
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
        while not (self._events or self._dropped or self._task.done()):
            await self._changed()
        if not (self._events or self._dropped):
            await self._task

    async def events(self, starting_after: int = -1) -> AsyncGenerator[ResponseEvent, None]:
        """Events with a greater sequence number, those to come too, up to the end of the work.

        Raises what ended the work, unless it was cancelled.
        """
        at = starting_after + 1
        while True:
            while at < self._dropped + len(self._events):
                events = self._events[at - self._dropped :]
                at += len(events)
                if not self._keep:
                    self._events, self._dropped = [], at
                for event in events:
                    yield event
            if self._task.done():
                break
            await self._changed()
        if not self._task.cancelled():
            self._task.result()

    async def wait(self) -> None:
        """Wait for the end of the work, as its reader; cancelling the wait leaves the work running."""
        async for _ in self.events():
            pass

    async def cancel(self) -> None:
        """End the work and wait for its clean-up."""
        if not self._cancelled:
            self._cancelled = True  # a second time would interrupt the clean-up
            self._task.cancel()
        await asyncio.wait([self._task])

    async def _changed(self) -> None:
        news = self._news
        if not self._task.done():
            await news.wait()
