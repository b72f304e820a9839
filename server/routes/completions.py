"""POST /v1/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from cvllm_jax.openai.completions_types import CompletionRequest
from server.answer import answer_request
from server.state import state_of

__all__ = ["create_completion"]


async def create_completion(request: Request) -> Response:
    """One JSON object, or server-sent events with ``"stream": true``."""
    adapter = state_of(request).adapter
    return await answer_request(request, CompletionRequest.parse, adapter.completion, adapter.completion_stream)
