"""Errors as OpenAI's API answers them: a status and ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from cvllm_jax.errors import (
    CancelledError,
    EngineStoppedError,
    Error,
    GenerationError,
    McpConnectionError,
    QueueFullError,
    TokenizationError,
)
from cvllm_jax.openai import GenerationFailedError, RequestError
from cvllm_jax.responses.errors import NotFoundError

__all__ = ["ApiError", "as_api_error", "error_body", "error_response", "exception_handlers"]

_log = logging.getLogger(__name__)


class ApiError(Exception):
    """An answer other than success."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told about ``error``; the details of unexpected ones stay in the server's log."""
    match error:
        case ApiError():
            return error
        case QueueFullError():
            return ApiError(
                429,
                str(error),
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        case EngineStoppedError():
            return ApiError(503, str(error), kind="server_error", code="engine_stopped")
        case GenerationFailedError():
            return ApiError(500, str(error), kind="server_error", code="generation_failed")
        case NotFoundError():
            return ApiError(404, str(error), param=error.param, code=error.code)
        case RequestError():
            return ApiError(400, str(error), param=error.param, code=error.code)
        case GenerationError() | TokenizationError():
            return ApiError(400, str(error), param=error.param, code="invalid_value")
        case CancelledError():
            return ApiError(503, str(error), kind="server_error", code="request_cancelled")
        case McpConnectionError():
            return ApiError(424, str(error), kind="external_connector_error", param=error.param, code="http_error")
        case Error():
            _log.error("%s: %s", type(error).__name__, error)
            return ApiError(500, str(error), kind="server_error")
        case _:
            _log.error("unexpected error", exc_info=error)
            return _unexpected()


def _unexpected() -> ApiError:
    return ApiError(500, "The server had an error while processing the request.", kind="server_error")


def error_body(error: ApiError) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}}


def error_response(error: BaseException) -> JSONResponse:
    known = as_api_error(error)
    return JSONResponse(error_body(known), status_code=known.status, headers=known.headers)


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    return error_response(error)


async def _on_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises the error again after this answer, and the server logs it then.
    return error_response(_unexpected())


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    message = {
        404: f"Unknown request URL: {where}.",
        405: f"Not allowed to {request.method} on {request.url.path}.",
    }.get(error.status_code, f"{error.detail}.")
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    return error_response(ApiError(error.status_code, message, code=code, headers=error.headers))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the log shows it


exception_handlers = {
    ClientDisconnect: _on_disconnect,
    HTTPException: _on_http_error,
    ApiError: _on_error,
    Error: _on_error,
    Exception: _on_unexpected_error,
}
