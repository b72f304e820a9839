"""Responses over a WebSocket at /v1/responses: one at a time, and conversations that live with the connection."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import from_json
from starlette.websockets import WebSocket

from cvllm_jax.openai import RequestError
from cvllm_jax.responses.creation import LocalChains
from cvllm_jax.responses.types import ResponseRequest
from server.connection import cancel_and_wait, is_disconnect
from server.errors import ApiError, as_api_error, error_body, error_response
from server.routes.models import check_model
from server.state import ServerState, stopping_error

__all__ = ["responses_socket"]

_MAX_SECS = 3600.0
_MAX_WAITING = 16
_CREATE = "response.create"


async def responses_socket(websocket: WebSocket) -> None:
    """Answer ``response.create`` messages in the order in which they come."""
    state: ServerState = websocket.app.state.server
    if not _allowed_origin(websocket, state):
        refusal = ApiError(403, "This origin may not connect; see --cors-origin.", code="origin_not_allowed")
        await websocket.send_denial_response(error_response(refusal))
        return
    await websocket.accept()
    waiting: asyncio.Queue[str] = asyncio.Queue(_MAX_WAITING)
    reading = asyncio.ensure_future(_read(websocket, waiting))
    answering = asyncio.ensure_future(_Connection(websocket, state).answer(waiting))
    stopped = asyncio.ensure_future(state.stopped.wait())
    try:
        await asyncio.wait({reading, answering, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
    except Exception as error:
        if not is_disconnect(error):
            raise
    finally:
        await cancel_and_wait(answering, stopped)
        if not reading.done():  # otherwise the client has closed it
            if state.stopped.is_set():
                await _send_error(websocket, stopping_error())
            await websocket.close(1001 if state.stopped.is_set() else 1000)
        await cancel_and_wait(reading)


async def _read(websocket: WebSocket, waiting: asyncio.Queue[str]) -> None:
    """Put messages into the queue until the client leaves."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        if text is None:
            text = (message.get("bytes") or b"").decode("utf-8", "replace")
        if waiting.full():
            await _send_error(
                websocket,
                ApiError(
                    429, f"{_MAX_WAITING} messages wait already.", kind="rate_limit_error", code="too_many_messages"
                ),
            )
        else:
            waiting.put_nowait(text)


class _Connection:
    """One client's turns."""

    def __init__(self, websocket: WebSocket, state: ServerState) -> None:
        self._websocket = websocket
        self._state = state
        self._chains: LocalChains = {}

    async def answer(self, waiting: asyncio.Queue[str]) -> None:
        """Answer messages until the connection is too old."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _MAX_SECS
        while (left := end - loop.time()) > 0:
            try:
                text = await asyncio.wait_for(waiting.get(), left)
            except TimeoutError:
                break
            await self._turn(text)
        limit = ApiError(
            400,
            "This connection has reached its limit of 60 minutes; connect again.",
            code="websocket_connection_limit_reached",
        )
        await _send_error(self._websocket, limit)

    async def _turn(self, text: str) -> None:
        previous: Any = None
        try:
            data = _decoded(text)
            previous = data.get("previous_response_id")
            request, generate = self._parsed(data)
            service = await self._state.responses()
            stream = await service.stream(request, self._chains, generate=generate)
            try:
                async for event in stream:
                    await self._websocket.send_text(event.model_dump_json())
            finally:
                await stream.aclose()
        except Exception as error:
            if is_disconnect(error):
                raise
            if isinstance(previous, str):
                self._chains.pop(previous, None)  # a client that failed to go on begins anew
            await _send_error(self._websocket, as_api_error(error))

    def _parsed(self, data: dict[str, Any]) -> tuple[ResponseRequest, bool]:
        kind = data.pop("type", None)
        if kind != _CREATE:
            raise RequestError(
                f"Invalid value: {json.dumps(kind)[:100]}. Supported values are: '{_CREATE}'.",
                param="type",
                code="invalid_value",
            )
        data.pop("stream", None)  # every turn is streamed
        data.pop("stream_options", None)
        if data.pop("background", None):
            raise RequestError(
                "'background' is not supported over a WebSocket.", param="background", code="unsupported_parameter"
            )
        generate = data.pop("generate", None)
        if not isinstance(generate, bool | None):
            raise RequestError(
                "Invalid type for 'generate': expected a boolean.", param="generate", code="invalid_type"
            )
        request = ResponseRequest.parse(data, strict=self._state.settings.strict)
        check_model(self._state, request.model)
        return request, generate is not False


def _decoded(text: str) -> dict[str, Any]:
    try:
        data = from_json(text)
    except ValueError as error:
        raise ApiError(400, f"The message is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(400, "The message must be a JSON object.", code="invalid_json")
    return data


async def _send_error(websocket: WebSocket, error: ApiError) -> None:
    body = error_body(error)["error"]
    body["code"] = body["code"] or body["type"]  # here it is always there
    await websocket.send_text(json.dumps({"type": "error", "status": error.status, "error": body}))


def _allowed_origin(websocket: WebSocket, state: ServerState) -> bool:
    """Whether a web page may connect. Browsers ask nobody first, as they do before other requests."""
    origin = websocket.headers.get("origin")
    if origin is None or {"*", origin} & set(state.settings.cors_origins):
        return True
    return urlsplit(origin).netloc == websocket.headers.get("host")
