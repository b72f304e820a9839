"""POST /v1/embeddings."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from cvllm_jax.openai.embeddings_types import EmbeddingRequest
from server.body import read_json_object
from server.connection import while_connected
from server.routes.models import check_model
from server.state import state_of

__all__ = ["create_embeddings"]


async def create_embeddings(request: Request) -> Response:
    """The vectors of one text or many."""
    state = state_of(request)
    adapter = state.adapter
    body = EmbeddingRequest.parse(await read_json_object(request, state.settings.max_body_bytes))
    check_model(state, body.model, kind="encoder", param=None)
    answer = await while_connected(adapter.embeddings(body), request.receive, state)
    return Response(answer.model_dump_json(), media_type="application/json")
