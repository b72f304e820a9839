"""The HTTP client below the MCP SDK: its answers are bounded, its failures are kept, its addresses are checked."""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

import httpcore2
import httpx2

from cvllm_jax.errors import McpConnectionError
from cvllm_jax.mcp.access import UrlPolicy
from cvllm_jax.mcp.config import McpServerConfig

__all__ = ["MAX_RESULT_BYTES", "Exchange", "McpHttpClient", "current_exchange"]

#: What one operation reads at most.
MAX_RESULT_BYTES = 4 << 20

#: Notifications, and the end of a session, need no answer; the SDK sends nothing else while it waits for one.
_COURTESY_SECS = 3.0

_NETWORK_ERRORS = (httpx2.TransportError, httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError)
_CONNECT_ERRORS = (httpx2.ConnectError, httpx2.ConnectTimeout, httpcore2.ConnectError, httpcore2.ConnectTimeout)

#: With these the server has done nothing: it does not know who asks, or what for, or has no time.
_REFUSALS = frozenset({401, 404, 405, 503})


class Exchange:
    """What became of the HTTP requests of one operation; the SDK tells only that they failed."""

    def __init__(self) -> None:
        self.status: int | None = None
        """Of the last answer."""
        self.failure: str | None = None
        """Why there was no whole answer."""
        self.sent = False
        """The server may have read a request."""
        self.received = 0
        """Bytes of answers."""
        self.answered = False
        """A JSON answer has been read to its end: there is no other to come."""

    def begin(self, *, sent: bool) -> None:
        """The operation's request is made, perhaps for the second time."""
        self.status = self.failure = None
        self.sent = sent
        self.received = 0
        self.answered = False

    @property
    def refused(self) -> bool:
        """The server cannot have acted on the request."""
        return not self.sent or self.status in _REFUSALS or (self.status is not None and 300 <= self.status < 400)

    @property
    def cause(self) -> str | None:
        """Why the operation failed, as far as HTTP can tell."""
        if self.failure is None and self.status is not None and self.status >= 300:
            return f"it answered {_status_text(self.status)}"
        return self.failure


#: The SDK sends each message in the context of the task that it is from.
current_exchange: ContextVar[Exchange] = ContextVar("current_exchange")


class McpHttpClient(httpx2.AsyncClient):
    """Turns every failure into an answer or an early end, which the SDK gives to the one request that it belongs to.

    An exception would end the SDK's connection, and with it all other requests.
    """

    def __init__(
        self,
        config: McpServerConfig,
        policy: UrlPolicy | None,
        *,
        on_broken_post: Callable[[str], None] | None = None,
        on_stream_end: Callable[[str], None] | None = None,
    ) -> None:
        headers = {**config.headers, "Accept-Encoding": "identity"}
        if config.authorization is not None:
            headers["Authorization"] = config.authorization
        super().__init__(
            headers=headers,
            # the operation as a whole has a time limit, and a call may be silent for long
            timeout=httpx2.Timeout(None, connect=config.timeout_secs),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
            transport=None if policy is None else _CheckedTransport(policy),
        )
        self._config = config
        self._policy = policy
        self._on_broken_post = on_broken_post
        self._on_stream_end = on_stream_end

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if self._on_stream_end is None and request.method == "GET" and "last-event-id" not in request.headers:
            # The stream for messages that belong to no request, which nobody here waits for: as if there were none.
            return httpx2.Response(HTTPStatus.METHOD_NOT_ALLOWED, request=request)
        exchange = current_exchange.get()
        is_courtesy = _needs_no_answer(request)
        if is_courtesy or (request.method == "GET" and exchange.sent):
            exchange = Exchange()  # what becomes of it says nothing about the operation's own request
        exchange.status = exchange.failure = None
        exchange.answered = False
        try:
            if self._policy is not None:
                self._policy.check_form(str(request.url))
            exchange.sent = True
            async with asyncio.timeout(_COURTESY_SECS if is_courtesy else None):
                response = await super().send(request, **options)
        except (McpConnectionError, *_NETWORK_ERRORS, TimeoutError) as error:
            if isinstance(error, (McpConnectionError, *_CONNECT_ERRORS)):
                exchange.sent = False
            exchange.failure = self._config.redacted(_network_cause(error))
            response = httpx2.Response(HTTPStatus.BAD_GATEWAY, request=request)
        else:
            exchange.status = response.status_code
            encoding = response.headers.get("content-encoding", "identity").lower()
            if encoding != "identity":  # a small body could unpack to any size
                del response.headers["content-encoding"]
                exchange.failure = f"it compressed its answer ({encoding[:20]}), which was not asked for"
            elif response.next_request is not None:
                host = response.next_request.url.netloc.decode(errors="replace").rpartition("@")[2]
                exchange.failure = f"it redirects to {host}, which is followed only within one server and method"
            # a stream serves all operations, and the SDK bounds each of its events
            limit = None if request.method == "GET" else MAX_RESULT_BYTES
            response.stream = _Body(response, exchange, limit, self._stream_end(request, response))
        if self._on_broken_post is not None and request.method == "POST" and response.status_code >= 400:
            self._on_broken_post(exchange.cause or "")
        return response

    def _stream_end(self, request: httpx2.Request, response: httpx2.Response) -> Callable[[str], None] | None:
        """Who wants to know when the body ends."""
        return self._on_stream_end if request.method == "GET" and response.status_code == 200 else None


class _Body(httpx2.AsyncByteStream):
    """An answer's body, which ends where the connection breaks or the limit is reached."""

    def __init__(
        self,
        response: httpx2.Response,
        exchange: Exchange,
        limit: int | None,
        on_end: Callable[[str], None] | None,
    ) -> None:
        self._body: Any = response.stream
        self._is_json = response.headers.get("content-type", "").lower().startswith("application/json")
        self._exchange = exchange
        self._limit = limit
        self._on_end = on_end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        try:
            if exchange.failure is None:
                async for chunk in self._body:
                    exchange.received += len(chunk)
                    if self._limit is not None and exchange.received > self._limit:
                        exchange.failure = f"its answer is larger than {self._limit >> 20} MiB, the most that is read"
                        break
                    yield chunk
                else:
                    exchange.answered = self._is_json
        except _NETWORK_ERRORS as error:
            exchange.failure = _network_cause(error)
        if self._on_end is not None:
            self._on_end(exchange.failure or "it closed its event stream")

    async def aclose(self) -> None:
        await self._body.aclose()


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that a policy has checked, and to no others that the name may have a moment later."""

    def __init__(self, policy: UrlPolicy) -> None:
        self._policy = policy
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        failure: Exception = httpcore2.ConnectError("no address")
        for address in await self._policy.addresses(host, port):
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


class _CheckedTransport(httpx2.AsyncBaseTransport):
    """httpx2's own transport takes no backend. Proxies are not used: they would do the connecting unchecked."""

    def __init__(self, policy: UrlPolicy) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            max_connections=None,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=_CheckedBackend(policy),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        response = await self._pool.handle_async_request(
            httpcore2.Request(
                method=request.method,
                url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx2.Response(
            response.status,
            headers=response.headers,
            stream=_PoolBody(response.stream),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _PoolBody(httpx2.AsyncByteStream):
    def __init__(self, body: Any) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body:
            yield chunk

    async def aclose(self) -> None:
        await self._body.aclose()


def _needs_no_answer(request: httpx2.Request) -> bool:
    if request.method != "POST":
        return request.method == "DELETE"
    try:
        message = json.loads(request.content)
    except httpx2.RequestNotRead:  # it follows a redirect
        return False
    return not ("id" in message and "method" in message)


def _network_cause(error: Exception) -> str:
    if isinstance(error, McpConnectionError):
        return str(error)
    if isinstance(error, _CONNECT_ERRORS):
        return f"it cannot be connected to: {_innermost_text(error)}"
    if isinstance(error, (TimeoutError, httpx2.TimeoutException, httpcore2.TimeoutException)):
        return "it does not answer"
    if isinstance(error, (httpx2.ProtocolError, httpcore2.ProtocolError)) and "disconnected" not in str(error):
        return f"it does not speak HTTP: {error}"
    return "it closed the connection before its answer was whole"


def _innermost_text(error: BaseException) -> str:
    """What the operating system or TLS said, which httpx2 wraps several times."""
    text = str(error)
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
        if isinstance(error, ssl.SSLError):
            text = re.sub(r"^\[.*?\] | \(_ssl.*\)$", "", str(error.strerror))
        elif isinstance(error, OSError) and error.errno is not None:
            text = os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return text or "no answer"


def _status_text(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
