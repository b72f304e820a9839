"""POST /v1/chat/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from cvllm_jax.openai import ChatCompletionRequest
from server.answer import answer_request
from server.state import state_of

__all__ = ["create_chat_completion"]


async def create_chat_completion(request: Request) -> Response:
    """One JSON object, or server-sent events with ``"stream": true``."""
    adapter = state_of(request).adapter
    return await answer_request(
        request, ChatCompletionRequest.parse, adapter.chat_completion, adapter.chat_completion_stream
    )
