"""What the Responses API refuses, in its own words, and how failures show in a response."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from cvllm_jax.errors import Error, McpConnectionError, QueueFullError
from cvllm_jax.openai.errors import RequestError
from cvllm_jax.responses.store import (
    ConversationLockedError,
    ConversationNotFoundError,
    DuplicateIdError,
    ItemNotFoundError,
    PreviousResponseNotFoundError,
    ResponseActiveError,
    ResponseNotFoundError,
    StoreError,
)
from cvllm_jax.responses.types import ErrorDetails, ResponseError

__all__ = [
    "NotFoundError",
    "api_errors",
    "as_request_error",
    "error_details",
    "in_words_of_responses",
    "response_error",
]

#: Fields of chat completions by the names that they have in requests for responses.
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}


class NotFoundError(RequestError):
    """There is no such response, conversation or item: HTTP 404."""


def as_request_error(error: StoreError) -> RequestError:
    """The store's refusal as the API words it."""
    match error:
        case ResponseNotFoundError():
            return NotFoundError(f"Response with id '{error.id}' not found.")
        case ConversationNotFoundError():
            return NotFoundError(f"Conversation with id '{error.id}' not found.")
        case ItemNotFoundError():
            return NotFoundError(f"Item with id '{error.id}' not found.")
        case PreviousResponseNotFoundError():
            return RequestError(
                f"Previous response with id '{error.id}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        case ResponseActiveError():
            return RequestError(
                f"Response with id '{error.id}' is still in progress; wait for its end to go on from it.",
                param="previous_response_id",
                code="response_in_progress",
            )
        case ConversationLockedError():
            return RequestError(
                "Another process is currently operating on this conversation. Please retry in a few seconds.",
                code="conversation_locked",
            )
        case DuplicateIdError():
            return RequestError(
                f"Duplicate item found with id '{error.id}'. Remove it from your input and try again.",
                param="input",
                code="invalid_value",
            )
        case _:
            return RequestError(f"{str(error)[:1].upper()}{str(error)[1:]}.", code="invalid_value")


@contextmanager
def api_errors() -> Generator[None]:
    """What the store refuses is raised as the API words it."""
    try:
        yield
    except StoreError as error:
        raise as_request_error(error) from error


def in_words_of_responses(error: RequestError) -> RequestError:
    """A refusal of the chat completion below, with the names that its fields have here."""
    if error.param is None:
        return error
    if error.code == "invalid_json_schema":
        return RequestError(str(error), param="text.format.schema", code=error.code)
    head, bracket, rest = error.param.partition("[")
    first, dot, others = head.partition(".")
    if first == "messages":  # which message is no item's place
        return RequestError(str(error), param="input", code=error.code)
    name = _NAMES.get(first, first) + dot + others + bracket + rest
    return RequestError(str(error), param=name.replace(".function.", "."), code=error.code)


def response_error(error: BaseException) -> ResponseError:
    """A failure as a response tells it; the details of unexpected ones are for the server's log only."""
    match error:
        case QueueFullError():
            code = "rate_limit_exceeded"
        case RequestError():
            code = "invalid_prompt"
        case _:
            code = "server_error"
    known = isinstance(error, Error)
    return ResponseError(code=code, message=str(error) if known else "The server had an error.")


def error_details(error: BaseException) -> ErrorDetails:
    """A failure as an ``error`` event tells it."""
    shown = response_error(error)
    refused = isinstance(error, RequestError)
    kind = "invalid_request_error" if refused else "server_error"
    if isinstance(error, McpConnectionError):
        kind = "external_connector_error"
    code = error.code if isinstance(error, RequestError) else shown.code
    return ErrorDetails(type=kind, code=code, message=shown.message, param=getattr(error, "param", None))
