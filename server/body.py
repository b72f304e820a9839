"""Request bodies: bounded, JSON, and refused with the right status otherwise."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from server.errors import ApiError

__all__ = ["read_json_object"]

# A body over the limit is read on and thrown away for a while: a client that is still sending
# does not look at the answer, and closing the connection under it would lose the answer.
_DISCARD_SECONDS = 5.0
_DISCARD_FACTOR = 10

# The parser's own limit.
_MAX_DEPTH = 200

# Parsing holds the event loop; bodies larger than this go to a thread.
_PARSE_INLINE_BYTES = 100_000


async def read_json_object(request: Request, limit: int) -> dict[str, Any]:
    """The body as a JSON object.

    Raises ApiError: 415 for another content type, 413 for more than ``limit`` bytes, 400 for what
    is no JSON object or nests too deep.
    """
    _check_content_type(request)
    body = await _read(request, limit)
    try:
        if len(body) > _PARSE_INLINE_BYTES:
            data = await asyncio.to_thread(from_json, body)
        else:
            data = from_json(body)
    except ValueError as error:
        told = f"The body is not valid JSON: {error}."
        if "recursion limit" in str(error):
            told = f"The body nests arrays and objects deeper than {_MAX_DEPTH}."
        raise ApiError(400, told, code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    return data


def _check_content_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    kind, *parameters = (part.strip().lower() for part in given.split(";"))
    charset = next((p.removeprefix("charset=").strip('"') for p in parameters if p.startswith("charset=")), "utf-8")
    if kind != "application/json" or charset not in ("utf-8", "utf8"):
        shown = f"'{given[:100]}'" if given else "missing"
        raise ApiError(
            415,
            f"The Content-Type must be 'application/json', but it is {shown}.",
            code="unsupported_content_type",
        )
    if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise ApiError(415, f"The Content-Encoding '{encoding[:50]}' is not supported.", code="unsupported_encoding")


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    body = bytearray()
    over = declared.isdigit() and int(declared) > limit
    more = True
    while more and not over:
        chunk, more = await _receive(request)
        body += chunk
        over = len(body) > limit
    if over:
        if more:
            await _discard(request, limit)
        raise ApiError(413, f"The body is larger than this server's limit of {limit} bytes.", code="body_too_large")
    return bytes(body)


async def _receive(request: Request) -> tuple[bytes, bool]:
    """The next piece of the body, and whether there is more."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


async def _discard(request: Request, limit: int) -> None:
    dropped, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            while more and dropped < limit * _DISCARD_FACTOR:
                chunk, more = await _receive(request)
                dropped += len(chunk)
