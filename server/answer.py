"""From the body of a request to its answer: one JSON object, or server-sent events with ``"stream": true``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from cvllm_jax.openai import RequestError
from server.body import read_json_object
from server.connection import while_connected
from server.routes.models import check_model
from server.sse import EventStream, Framing, Items
from server.state import state_of

__all__ = ["answer_request"]


class StreamableRequest(Protocol):
    """A parsed body that can ask for a stream."""

    model: str
    stream: bool | None

    @property
    def stream_options(self) -> object | None: ...


async def answer_request[R: StreamableRequest](
    request: Request,
    parse: Callable[[Any], R],
    whole: Callable[[R], Awaitable[BaseModel]],
    streamed: Callable[[R], Awaitable[Items]],
    framing: Callable[[], Framing] = Framing,
) -> Response:
    """Answer a request for generated text for as long as its client is there.

    ``parse`` makes a request of the JSON object and says what is wrong with it. ``whole`` answers it, or ``streamed``
    does, which raises when it is awaited what can be refused: before the stream's status is sent.
    """
    state = state_of(request)
    body = parse(await read_json_object(request, state.settings.max_body_bytes))
    check_model(state, body.model, param=None)
    if body.stream_options is not None and not body.stream:
        raise RequestError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    if body.stream:
        return EventStream(await while_connected(streamed(body), request.receive, state), state, framing())
    answer = await while_connected(whole(body), request.receive, state)
    return Response(answer.model_dump_json(), media_type="application/json")
