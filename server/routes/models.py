"""GET /v1/models and /v1/models/{id}: the one model that is served."""

from __future__ import annotations

from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse

from server.errors import ApiError
from server.state import ServerState, state_of

__all__ = ["check_model", "get_model", "list_models"]


async def list_models(request: Request) -> JSONResponse:
    return JSONResponse({"object": "list", "data": [_model(state_of(request))]})


async def get_model(request: Request) -> JSONResponse:
    state = state_of(request)
    check_model(state, request.path_params["model"], kind=None)
    return JSONResponse(_model(state))


def check_model(
    state: ServerState,
    name: str,
    *,
    kind: Literal["causal", "encoder"] | None = "causal",
    param: str | None = "model",
) -> None:
    """Raise ApiError 404 unless ``name`` is the served model, and 400 unless it is of this kind.

    OpenAI's API names no ``param`` in the 404 of some routes.
    """
    if name != state.model_name:
        raise ApiError(
            404,
            f"The model `{name[:200]}` does not exist or you do not have access to it; this server has "
            f"`{state.model_name}`.",
            param=param,
            code="model_not_found",
        )
    served = state.adapter.engine.model_info().kind
    if kind is not None and served != kind:
        does, route = {
            "causal": ("generates text and has no embeddings", "/v1/chat/completions or /v1/completions"),
            "encoder": ("gives embeddings and generates no text", "/v1/embeddings"),
        }[served]
        raise ApiError(400, f"The model '{name[:200]}' {does}; use {route}.", param="model", code="invalid_value")


def _model(state: ServerState) -> dict[str, Any]:
    return {"id": state.model_name, "object": "model", "created": state.created, "owned_by": "cvllm-jax"}
