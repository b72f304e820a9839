"""A client of one MCP server."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cvllm_jax.errors import ConfigError, McpConnectionError
from cvllm_jax.mcp.access import UrlPolicy
from cvllm_jax.mcp.background import background_loop, run_on
from cvllm_jax.mcp.config import McpServerConfig
from cvllm_jax.openai.mcp_types import McpTool, McpToolCall, McpToolResult

if TYPE_CHECKING:
    from cvllm_jax.mcp.session import McpSession

__all__ = ["McpClient"]


class McpClient:
    """Lists and calls the tools of one MCP server.

    ``await McpClient.connect(config)`` belongs to the event loop that it runs in; any number of tasks may use it at
    once. ``McpClient.connect_sync(config)`` and the other ``_sync`` methods are for programs without a loop, and for
    other threads. It is closed by ``close()``, ``with``, ``async with``, or when it is dropped.

    Each operation ends within its time limit. One that the server cannot have acted on, because it is down, restarts
    or has lost the session, is tried once more over a new connection; so is a call that broke off, if the listing
    said that its tool only reads or may be repeated. An answer is at most 4 MiB, over SSE 1 MiB.

    Raises McpConnectionError where the server could not be asked, and McpToolExecutionError where it has refused a
    call or may have carried it out; both in one sentence with the server and the cause, and without secrets.
    """

    def __init__(self, config: McpServerConfig, *, policy: UrlPolicy | None = None, label: str | None = None) -> None:
        """Connects when it is first used. ``policy`` says which hosts a URL may lead to; None: any.

        Raises ConfigError where the mcp package is missing.
        """
        self.config = config
        name = config.server if label is None else label
        self._session = _make_session(config, policy, f"MCP server {name!r}")
        self._home = _Home()
        self._finalizer = weakref.finalize(self, _drop, self._session, self._home)

    @classmethod
    async def connect(cls, config: McpServerConfig, *, policy: UrlPolicy | None = None) -> Self:
        """Raises McpConnectionError if the server cannot be reached."""
        client = cls(config, policy=policy)
        try:
            await client._home.run(client._session.connect)
        except BaseException:
            client._finalizer()
            raise
        return client

    @classmethod
    def connect_sync(cls, config: McpServerConfig, *, policy: UrlPolicy | None = None) -> Self:
        """:meth:`connect` for callers without an event loop."""
        client = cls(config, policy=policy)
        try:
            client._home.run_sync(client._session.connect)
        except BaseException:
            client._finalizer()
            raise
        return client

    async def list_tools(self) -> list[McpTool]:
        """All tools, in the server's order."""
        return await self._home.run(self._session.list_tools)

    def list_tools_sync(self) -> list[McpTool]:
        """:meth:`list_tools` for callers without an event loop."""
        return self._home.run_sync(self._session.list_tools)

    async def call_tool(self, call: McpToolCall, *, timeout_secs: float | None = None) -> McpToolResult:
        """What the tool answered; ``is_error`` is set where the tool itself has failed.

        ``timeout_secs`` replaces the configuration's. Cancelling the awaiting task cancels the call at the server.
        """
        return await self._home.run(lambda: self._session.call_tool(call, timeout_secs))

    def call_tool_sync(self, call: McpToolCall, *, timeout_secs: float | None = None) -> McpToolResult:
        """:meth:`call_tool` for callers without an event loop."""
        return self._home.run_sync(lambda: self._session.call_tool(call, timeout_secs))

    async def close(self) -> None:
        """End the connection; what still runs ends with an error. A second call does nothing."""
        if self._home.is_alive:
            await self._home.run(self._session.close)
        self._finalizer()

    def close_sync(self) -> None:
        """:meth:`close` for callers without an event loop."""
        if self._home.is_alive:
            self._home.run_sync(self._session.close)
        self._finalizer()
        self._home.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_sync()

    def __repr__(self) -> str:
        return f"McpClient({self.config!r})"


class _Home:
    """The event loop that a client belongs to: the first that uses it, or the background's."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._in_background = False

    @property
    def is_alive(self) -> bool:
        return self.loop is not None and self.loop.is_running()

    async def run[T](self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        here = asyncio.get_running_loop()
        if self.loop is None:
            self.loop = here
        if self.loop is here:
            return await work()
        self._check_alive()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), self.loop))

    def run_sync[T](self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self.loop is None:
            self.loop = background_loop.join()
            self._in_background = True
        self._check_alive()
        return run_on(self.loop, work)

    def _check_alive(self) -> None:
        if not self.is_alive:
            raise McpConnectionError("the event loop that the MCP client belongs to has ended, and the client with it")

    def leave(self) -> None:
        if self._in_background:
            self._in_background = False
            background_loop.leave()

    def wait(self) -> None:
        """Until the background has ended, if nobody else uses it."""
        background_loop.wait(self.loop)


def _make_session(config: McpServerConfig, policy: UrlPolicy | None, name: str) -> McpSession:
    """The SDK is loaded here: the library can be imported without it."""
    try:
        from cvllm_jax.mcp.session import McpSession
    except ImportError as error:
        raise ConfigError("MCP needs the mcp package, 2.3 or later: pip install 'cvllm-jax[mcp]'") from error
    return McpSession(config, policy, name)


def _drop(session: McpSession, home: _Home) -> None:
    """End what a client has left behind, from whatever thread it is dropped in."""
    if home.loop is None:
        session.drop()
    else:
        with suppress(RuntimeError):  # the loop is closed, and has ended all its tasks
            home.loop.call_soon_threadsafe(session.drop)
    home.leave()
