"""The event loop of those who have none: one thread, which is there while somebody uses it."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from typing import Any

from cvllm_jax.errors import OtherError

__all__ = ["BackgroundLoop", "background_loop", "run_on"]

_END_SECS = 10.0
_LOOK_SECS = 1.0


class BackgroundLoop:
    """Begins with its first user and ends, with all that runs on it, when the last one has left."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a client may be dropped, and leave, while this thread is in here
        self._users = 0
        self._thread: _LoopThread | None = None
        self._ending: _LoopThread | None = None

    def join(self) -> asyncio.AbstractEventLoop:
        """The loop, for one more user, who has to :meth:`leave`."""
        with self._lock:
            self._users += 1
            if self._thread is None:
                self._thread = _LoopThread()
            return self._thread.loop

    def leave(self) -> None:
        """Never blocks for long: dropped clients call it from wherever they are dropped."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._thread is not None:
                self._thread.stop()
                self._thread, self._ending = None, self._thread

    def wait(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Until the thread of ``loop`` has ended, if it is about to."""
        with self._lock:
            ending = self._ending
        if ending is not None and ending.loop is loop and ending is not threading.current_thread():
            ending.join(_END_SECS)

    def end(self) -> None:
        """With the interpreter: a thread that it simply stops would leave child processes behind."""
        with self._lock:
            threads = [thread for thread in (self._thread, self._ending) if thread is not None]
        for thread in threads:
            thread.stop()
            thread.join(_END_SECS)


class _LoopThread(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="MCP clients", daemon=True)
        self._started_loop = threading.Event()
        self.loop: asyncio.AbstractEventLoop
        self._stop_event: asyncio.Event
        self.start()
        self._started_loop.wait()

    def run(self) -> None:
        asyncio.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop_event = asyncio.Event()
        self._started_loop.set()
        await self._stop_event.wait()  # asyncio.run then cancels what is left, and waits for it

    def stop(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._stop_event.set)
        except RuntimeError:  # it has ended
            return


background_loop = BackgroundLoop()
atexit.register(background_loop.end)


def run_on[T](loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of ``work``, which runs on ``loop`` in another thread. Ctrl-C cancels it."""
    if asyncio._get_running_loop() is loop:
        raise OtherError("a method that blocks was called in the client's own event loop; await its twin")
    future = asyncio.run_coroutine_threadsafe(work(), loop)
    try:
        while not wait([future], _LOOK_SECS).done:
            if not loop.is_running():  # it ended between: nobody is going to do the work
                raise OtherError("the client's event loop has ended")
        return future.result()
    except BaseException:
        future.cancel()
        raise
