"""POST /v1/completions."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from cvllm_jax.openai import OpenAIAdapter, RequestError
from cvllm_jax.openai.completions import CompletionStream
from cvllm_jax.openai.completions_types import CompletionRequest
from server.body import read_json_object
from server.connection import while_connected
from server.routes.models import check_model
from server.sse import EventStream
from server.state import state_of

__all__ = ["create_completion"]


async def create_completion(request: Request) -> Response:
    """One JSON object, or server-sent events with ``"stream": true``."""
    state = state_of(request)
    adapter = state.adapter
    try:
        body = CompletionRequest.parse(await read_json_object(request, state.settings.max_body_bytes))
        check_model(state, body.model)
        if body.stream_options is not None and not body.stream:
            raise RequestError(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                param="stream_options",
            )
        if body.stream:
            stream = await while_connected(_started(adapter, body), request.receive, state)
            return EventStream(stream, state)
        answer = await while_connected(adapter.completion(body), request.receive, state)
        return Response(answer.model_dump_json(), media_type="application/json")
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads it; the log shows it


async def _started(adapter: OpenAIAdapter, body: CompletionRequest) -> CompletionStream:
    """What is wrong with the request shows before the stream's status is sent."""
    return await adapter.completion_stream(body)
