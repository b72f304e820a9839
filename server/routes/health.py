"""GET /health: whether the server answers requests yet."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse

from server.state import state_of

__all__ = ["get_health"]


async def get_health(request: Request) -> JSONResponse:
    """200 with the model's name, or 503 with the progress of loading or with what has failed."""
    health = state_of(request).health()
    return JSONResponse(health, status_code=200 if health["status"] == "ok" else 503)
