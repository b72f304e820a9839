"""GET /v1/models and /v1/models/{id}: the one model that is served."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from server.errors import ApiError
from server.state import ServerState, state_of

__all__ = ["check_model", "get_model", "list_models"]


async def list_models(request: Request) -> JSONResponse:
    return JSONResponse({"object": "list", "data": [_model(state_of(request))]})


async def get_model(request: Request) -> JSONResponse:
    state = state_of(request)
    check_model(state, request.path_params["model"])
    return JSONResponse(_model(state))


def check_model(state: ServerState, name: str) -> None:
    """Raise ApiError 404 unless ``name`` is the served model."""
    if name != state.model_name:
        raise ApiError(
            404,
            f"The model '{name[:200]}' does not exist; this server has '{state.model_name}'.",
            param="model",
            code="model_not_found",
        )


def _model(state: ServerState) -> dict[str, Any]:
    return {"id": state.model_name, "object": "model", "created": state.created, "owned_by": "cvllm-jax"}
