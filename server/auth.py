"""The optional API key."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from server.errors import ApiError, error_response

__all__ = ["ApiKeyMiddleware"]

#: What other servers have outside of /v1; it takes processor time all the same.
_OTHER_PATHS = ("/tokenize", "/detokenize", "/apply-template")


class ApiKeyMiddleware:
    """Answers 401 on every path under /v1 and those beside it unless the request has ``Authorization: Bearer KEY``."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] in ("http", "websocket") and _is_api_path(scope["path"])
        if guarded and not self._allows(Headers(scope=scope)):
            error = ApiError(
                401,
                "Incorrect or missing API key; send it as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            answer = error_response(error)
            if scope["type"] == "websocket":
                await WebSocket(scope, receive, send).send_denial_response(answer)
            else:
                await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allows(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # compare_digest takes the same time wherever the first difference is
        return hmac.compare_digest(key.strip().encode("latin-1"), self._expected) and scheme.lower() == "bearer"


def _is_api_path(path: str) -> bool:
    return path in _OTHER_PATHS or path == "/v1" or path.startswith("/v1/")
