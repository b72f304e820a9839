"""Running the application: sockets, signals and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette

from cvllm_jax.errors import ConfigError

if TYPE_CHECKING:
    from cvllm_jax.engine.opening import AnyEngine
    from server.state import ServerState

__all__ = ["bind", "run"]

# An engine closes in a fraction of a second unless a step is being compiled, which can take half a minute.
_CLOSE_SECONDS = 2.0


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, made before the model loads so that a taken port shows at once.

    Port 0 takes any free one. Raises ConfigError.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise ConfigError(f"the host name {host!r} is unknown on this machine", param="host") from None
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}; choose another with --port",
            param="port",
        ) from error
    return bound


def run(
    app: Starlette,
    bound: socket.socket,
    load: Callable[[], AnyEngine],
    on_ready: Callable[[AnyEngine], None],
    log_level: str = "warning",
) -> bool:
    """Serve ``app`` until Ctrl-C or SIGTERM, loading its engine meanwhile.

    False if the signal came while a thread loaded the engine or compiled one of its steps: then it is still at it,
    which cannot be interrupted, and the process should end without waiting (``os._exit``).

    The first signal ends the server when running answers are done, or after ``drain_seconds``; the
    second ends it at once. What ``load`` raises is raised here.
    """
    state: ServerState = app.state.server
    config = uvicorn.Config(
        app,
        log_level=log_level,
        ws="websockets-sansio",
        ws_max_size=state.settings.max_body_bytes,
        lifespan="off",
        timeout_graceful_shutdown=int(state.settings.drain_seconds) + 5,
    )
    return asyncio.run(_serve(_Server(config, state), state, bound, load, on_ready))


async def _serve(
    server: _Server,
    state: ServerState,
    bound: socket.socket,
    load: Callable[[], AnyEngine],
    on_ready: Callable[[AnyEngine], None],
) -> bool:
    loading = _load_in_thread(load)
    serving = asyncio.ensure_future(server.serve(sockets=[bound]))
    both: tuple[asyncio.Future[Any], ...] = (loading, serving)
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        await serving
        return False
    try:
        engine = loading.result()
    except BaseException:
        server.should_exit = True
        await serving
        raise
    try:
        state.ready(engine)
        on_ready(engine)
        await serving
        await state.aclose()
    finally:
        closed = not engine.warming_up and await _close(engine)
    return closed


async def _close(engine: AnyEngine) -> bool:
    """Close the engine; False if it still compiles a step after ``_CLOSE_SECONDS``, which cannot be interrupted."""
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()

    def close() -> None:
        engine.close()
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=close, name="close-engine", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(closed.wait(), _CLOSE_SECONDS)
    return closed.is_set()


def _load_in_thread(load: Callable[[], AnyEngine]) -> asyncio.Future[AnyEngine]:
    """``load()`` in a thread that does not keep the process alive, unlike those of an executor."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[AnyEngine] = loop.create_future()

    def work() -> None:
        try:
            engine = load()
        except BaseException as error:
            outcome: Callable[[], None] = lambda error=error: future.set_exception(error)  # type: ignore[misc]  # noqa: E731
        else:
            outcome = lambda: future.set_result(engine)  # noqa: E731
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            loop.call_soon_threadsafe(outcome)

    threading.Thread(target=work, name="load-model", daemon=True).start()
    return future


class _Server(uvicorn.Server):
    """uvicorn, with an end of our own: it would end the process by the signal it got."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self._state = state
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        assert self._loop is not None
        if self.should_exit or sig not in (signal.SIGINT, signal.SIGTERM):
            self.force_exit = True
            self._loop.call_soon_threadsafe(self._state.stop)
            return
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._begin_drain, self._loop)

    def _begin_drain(self, loop: asyncio.AbstractEventLoop) -> None:
        self._state.drain()
        loop.call_later(self._state.settings.drain_seconds, self._state.stop)
