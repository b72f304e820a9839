"""The routes under /v1/responses, but for the WebSocket."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from cvllm_jax.responses.types import ErrorDetails, ErrorEvent, ResponseRequest
from server.answer import answer_request
from server.body import read_json_object
from server.connection import while_connected
from server.errors import ApiError
from server.query import query_flag, query_list, query_number, query_order
from server.routes.models import check_model
from server.sse import EventStream, Framing
from server.state import state_of

__all__ = [
    "cancel_response",
    "compact_response",
    "count_input_tokens",
    "create_response",
    "delete_response",
    "get_response",
    "list_input_items",
]


class ResponseFraming(Framing):
    """Events with their names; an error is one of them, and has the next number."""

    def __init__(self) -> None:
        self._next_number = 0

    def event(self, item: BaseModel) -> str:
        self._next_number = item.sequence_number + 1  # type: ignore[attr-defined]  # every event has one
        return f"event: {item.type}\ndata: {item.model_dump_json()}\n\n"  # type: ignore[attr-defined]

    def error(self, error: ApiError) -> str:
        details = ErrorDetails(type=error.kind, code=error.code, message=str(error), param=error.param)
        return self.event(ErrorEvent.of(details, self._next_number))


async def create_response(request: Request) -> Response:
    """One JSON object, or server-sent events with ``"stream": true``."""
    service = await state_of(request).responses()
    return await answer_request(request, _parser(request), service.create, service.stream, ResponseFraming)


async def get_response(request: Request) -> Response:
    """A stored response; with ``?stream=true`` its events, after ``starting_after``."""
    state = state_of(request)
    service = await state.responses()
    response_id = request.path_params["response_id"]
    if not query_flag(request, "stream"):
        return await _answered(service.retrieve(response_id, query_list(request, "include")))
    after = query_number(request, "starting_after", -1, -1, 10**15)
    return EventStream(await service.resume(response_id, after), state, ResponseFraming())


async def delete_response(request: Request) -> Response:
    service = await state_of(request).responses()
    return await _answered(service.delete(request.path_params["response_id"]))


async def cancel_response(request: Request) -> Response:
    service = await state_of(request).responses()
    return await _answered(service.cancel(request.path_params["response_id"]))


async def list_input_items(request: Request) -> Response:
    service = await state_of(request).responses()
    items = service.input_items(
        request.path_params["response_id"],
        after=request.query_params.get("after"),
        before=request.query_params.get("before"),
        limit=query_number(request, "limit", 20, 1, 100),
        order=query_order(request),
        include=query_list(request, "include"),
    )
    return await _answered(items)


async def count_input_tokens(request: Request) -> Response:
    """How many tokens the model would read; the model's name may be left out."""
    service = await state_of(request).responses()
    body = await _body(request, default_model=True)
    return await _answered(while_connected(service.input_tokens(body), request.receive, state_of(request)))


async def compact_response(request: Request) -> Response:
    """The conversation in short."""
    service = await state_of(request).responses()
    body = await _body(request)
    return await _answered(while_connected(service.compact(body), request.receive, state_of(request)))


async def _body(request: Request, *, default_model: bool = False) -> ResponseRequest:
    state = state_of(request)
    data = await read_json_object(request, state.settings.max_body_bytes)
    if default_model:
        data.setdefault("model", state.model_name)
    body = _parser(request)(data)
    check_model(state, body.model)
    return body


def _parser(request: Request) -> Any:
    strict = state_of(request).settings.strict
    return lambda data: ResponseRequest.parse(data, strict=strict)


async def _answered(work: Awaitable[BaseModel]) -> Response:
    return Response((await work).model_dump_json(), media_type="application/json")
