"""One connection to an MCP server, and the task that owns it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

import anyio
from httpx2 import SSEError
from mcp import Client, MCPError
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CONNECTION_CLOSED, PARSE_ERROR, Implementation
from pydantic import ValidationError

from cvllm_jax import __version__
from cvllm_jax.errors import McpConnectionError
from cvllm_jax.mcp.access import UrlPolicy
from cvllm_jax.mcp.config import McpServerConfig
from cvllm_jax.mcp.http import MAX_RESULT_BYTES, Exchange, McpHttpClient, current_exchange
from cvllm_jax.mcp.incoming import bounded_messages
from cvllm_jax.mcp.stdio import stdio_transport

__all__ = ["AnsweredError", "Connection", "NoAnswerError"]

# The SDK logs what servers get wrong, with tracebacks: that is for those who set up logging, not for the terminal.
logging.getLogger("mcp").addHandler(logging.NullHandler())

#: In the place of HTTP errors without a JSON-RPC message.
_SDK_STAND_INS = frozenset({"Not Found", "Session terminated", "Server returned an error response"})
_SDK_STREAM_ENDS = ("Connection closed", "SSE stream ")

#: The SDK reports the end of a connection before its cause.
_CAUSE_SECS = 1.0

_CLOSE_SECS = 8.0

type _Kind = Literal["http", "sse", "stdio"]


class NoAnswerError(Exception):
    """There is no answer. ``refused``: the server has not acted on the request, and it may be sent again."""

    def __init__(self, cause: str, *, refused: bool) -> None:
        super().__init__(cause)
        self.refused = refused


class AnsweredError(Exception):
    """The server's answer is an error."""


class Connection:
    """Opens when it is made; must be made in a running event loop, whose tasks may all use it.

    The SDK's client has to be entered and left in the same task, so that a task of its own does both.
    """

    def __init__(self, config: McpServerConfig, policy: UrlPolicy | None) -> None:
        self._config = config
        self._policy = policy
        self._exchange = Exchange()
        self._client: Client | None = None
        loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = loop.create_future()
        self._lost: asyncio.Future[str] = loop.create_future()
        self._stop = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()
        self._forbidden: McpConnectionError | None = None
        self._retired = False
        self._unanswered = 0
        self._owner = asyncio.create_task(self._own(), name=f"MCP server {config.server}")

    @property
    def usable(self) -> bool:
        """False once it is lost or retired: further requests need another one."""
        return not (self._retired or self._lost.done())

    @property
    def ended(self) -> bool:
        """Nothing is left of it."""
        return self._owner.done()

    async def opened(self) -> None:
        """Wait until it is open; raises NoAnswerError, and McpConnectionError where the policy forbids it."""
        await _first_of(self._opened, self._lost)
        if self._forbidden is not None:
            raise self._forbidden
        if self._client is None:
            raise NoAnswerError(self._lost.result(), refused=True)

    async def request[T](self, send: Callable[[Client], Awaitable[T]], exchange: Exchange) -> T:
        """The answer to one request; raises NoAnswerError and AnsweredError.

        Cancelling it cancels the request at the server. It ends at once then, whatever the SDK still has to do.
        """
        if self._client is None or self._lost.done():
            raise NoAnswerError(self._lost.result() if self._lost.done() else "it is not connected", refused=True)
        exchange.begin(sent=self._config.url is None)
        context = contextvars.copy_context()
        context.run(current_exchange.set, exchange)
        call = asyncio.create_task(_as_coroutine(send, self._client), context=context)
        self._calls.add(call)
        call.add_done_callback(self._call_ended)
        try:
            await _first_of(call, self._lost)
        except asyncio.CancelledError:
            self._unanswered += 1
            if self._unanswered > 1:  # something may be stuck, and no request would ever get through
                self.retire()
            call.cancel()
            raise
        if self._lost.done() and (not call.done() or call.cancelled()):
            call.cancel()
            raise NoAnswerError(self._lost.result(), refused=exchange.refused)
        self._unanswered = 0
        try:
            return call.result()
        except MCPError as error:
            if error.message == _SDK_STREAM_ENDS[0] and exchange.cause is None:
                await asyncio.wait({self._lost}, timeout=_CAUSE_SECS)
            raise self._failure(error, exchange) from error
        except ValidationError as error:
            raise AnsweredError("its answer is no valid MCP result") from error
        except (RuntimeError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:  # it ended meanwhile
            raise NoAnswerError("it closed the connection before it answered", refused=exchange.refused) from error

    def _failure(self, error: MCPError, exchange: Exchange) -> NoAnswerError | AnsweredError:
        """What the SDK's error means for a request, as HTTP saw it."""
        said = self._config.redacted(error.message)
        if exchange.failure is not None:
            return NoAnswerError(exchange.failure, refused=exchange.refused)
        if error.code == CONNECTION_CLOSED and said.startswith(_SDK_STREAM_ENDS):  # servers use the code too
            cause = self._lost.result() if self._lost.done() else "it closed the connection before it answered"
            return NoAnswerError(cause, refused=exchange.refused)
        if error.code == PARSE_ERROR:
            return NoAnswerError("its answer is no JSON-RPC message", refused=False)
        # 400 is how many servers answer to a session that they no longer know
        refused = exchange.refused or (exchange.status == 400 and self._has_session)
        if refused or said in _SDK_STAND_INS:
            status = exchange.cause or said
            return NoAnswerError(status if said in _SDK_STAND_INS else f"{status}: {said}", refused=refused)
        return AnsweredError(said)

    @property
    def _has_session(self) -> bool:
        return self._client is not None and self._client.session.initialize_result is not None

    def _call_ended(self, call: asyncio.Task[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # whoever waited for it has it, or has given up
        if self._retired and not self._calls:
            self._stop.set()

    def retire(self) -> None:
        """Take no further requests, and close when the last one is answered."""
        self._retired = True
        if not self._calls:
            self._stop.set()

    def lose(self, cause: str) -> None:
        """End all requests with ``cause``, and close."""
        if not self._lost.done():
            self._lost.set_result(cause)
        self._stop.set()

    async def close(self) -> None:
        """End all requests, and wait until nothing is left."""
        self.lose("the client was closed")
        await asyncio.wait({self._owner}, timeout=_CLOSE_SECS)

    async def _own(self) -> None:
        current_exchange.set(self._exchange)
        cause = "it ended the connection"
        try:
            if self._policy is not None and self._config.url is not None:
                await self._policy.check(self._config.url)
            kinds = _kinds(self._config)
            for kind in kinds:
                self._exchange.begin(sent=False)
                try:
                    await self._serve(kind)
                    break
                except Exception as error:
                    if self._lost.done() or self._client is not None:
                        raise
                    cause = self._cause(error) if kind is kinds[0] else cause
                    if kind is kinds[-1] or self._exchange.status not in (400, 404, 405):
                        return
        except asyncio.CancelledError:
            cause = "its event loop ended"
            raise
        except McpConnectionError as error:
            self._forbidden = error
        except Exception as error:
            cause = self._cause(error)
        finally:
            self.lose(cause)
            for call in self._calls:
                call.cancel()

    async def _serve(self, kind: _Kind) -> None:
        client = Client(
            bounded_messages(self._transport(kind)),
            mode="legacy" if kind == "sse" else "auto",
            client_info=Implementation(name="cvllm-jax", version=__version__),
            cache=None,
        )
        async with asyncio.timeout(self._config.timeout_secs) as limit:
            async with client:
                limit.reschedule(None)
                self._client = client
                self._opened.set_result(None)
                await self._stop.wait()
                if self._calls:  # their requests are cancelled at the server while that can still be told
                    for call in self._calls:
                        call.cancel()
                    await asyncio.wait(self._calls, timeout=1.0)

    def _transport(self, kind: _Kind) -> AbstractAsyncContextManager[Any]:
        config = self._config
        if kind == "stdio":
            return stdio_transport(config, self.lose)
        url = str(config.url)
        if kind == "http":
            return _streamable_http(url, McpHttpClient(config, self._policy))

        def make_client(headers: Any = None, timeout: Any = None, auth: Any = None) -> McpHttpClient:
            return McpHttpClient(config, self._policy, on_broken_post=self.lose, on_stream_end=self.lose)

        return sse_client(url, httpx_client_factory=make_client)

    def _cause(self, error: BaseException) -> str:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, MCPError):
            return str(self._failure(error, self._exchange))
        if self._exchange.cause is not None:
            return self._exchange.cause
        if isinstance(error, TimeoutError):
            return f"it did not answer within {self._config.timeout_secs:g} seconds"
        if isinstance(error, SSEError):
            return "its answer is larger than 1 MiB, the most that is read over SSE, or no event stream"
        if isinstance(error, OSError):
            return f"it cannot be started: {error.strerror or type(error).__name__}"
        if isinstance(error, ValidationError):
            return "its answer is no valid MCP result"
        return self._config.redacted(str(error) or type(error).__name__)


async def _first_of(*waited: asyncio.Future[Any]) -> None:
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)


async def _as_coroutine[T](send: Callable[[Client], Awaitable[T]], client: Client) -> T:
    return await send(client)


def _kinds(config: McpServerConfig) -> Sequence[_Kind]:
    """The transports to try, in order: which one a URL is for does not show before it is asked."""
    if config.url is None:
        return ("stdio",)
    if config.transport in ("http", "sse"):
        return (config.transport,)
    return ("sse", "http") if urlsplit(config.url).path.rstrip("/").endswith("/sse") else ("http", "sse")


@asynccontextmanager
async def _streamable_http(url: str, http_client: McpHttpClient) -> AsyncGenerator[Any]:
    limited = streamable_http_client(url, http_client=http_client, max_sse_event_size=MAX_RESULT_BYTES)
    async with http_client, limited as streams:
        yield streams
