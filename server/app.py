"""The ASGI application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from server.auth import ApiKeyMiddleware
from server.errors import exception_handlers
from server.routes import ROUTES
from server.settings import ServerSettings
from server.state import ServerState

if TYPE_CHECKING:
    from cvllm_jax.engine.opening import AnyEngine

__all__ = ["create_app"]


def create_app(engine: AnyEngine | None = None, settings: ServerSettings | None = None) -> Starlette:
    """The server as an ASGI application.

    Without an engine it answers 503 until ``app.state.server.ready(engine)`` is called. The engine
    stays the caller's, who closes it after the server.
    """
    settings = settings or ServerSettings()
    middleware = []
    if settings.cors_origins:
        # Outermost: browsers ask before they send the key, and read errors only with CORS headers.
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
            )
        )
    if settings.api_key is not None:
        middleware.append(Middleware(ApiKeyMiddleware, api_key=settings.api_key))
    app = Starlette(routes=ROUTES, middleware=middleware, exception_handlers=exception_handlers)
    app.router.redirect_slashes = False  # an unknown path is OpenAI's 404, whatever it ends with
    app.state.server = ServerState(settings)
    if engine is not None:
        app.state.server.ready(engine)
    return app
