"""Errors of the OpenAI layer that carry what OpenAI's error bodies carry."""

from __future__ import annotations

from cvllm_jax.errors import GenerationError

__all__ = ["GenerationFailedError", "RequestError"]


class RequestError(GenerationError):
    """A request that cannot be served as written: status 400 over HTTP.

    ``param`` is the path of the field at fault (``messages[0].content``) and ``code`` the
    machine-readable reason, both as OpenAI's API names them, or None.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code


class GenerationFailedError(GenerationError):
    """The request was valid but the engine failed while running it: status 500 over HTTP."""
