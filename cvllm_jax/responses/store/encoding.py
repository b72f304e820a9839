"""JSON values as bytes, and ids as text, that every database keeps as they are.

PostgreSQL's text and jsonb refuse NUL characters, and no encoder takes lone surrogates; clients send both. So values
are UTF-8 in binary columns, where JSON has already escaped NUL and ``surrogatepass`` keeps surrogates, also two in a
row that would read back as one character; and ids are ASCII with Python's escapes for everything else.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Dialect, Text, TypeDecorator

from cvllm_jax.errors import shown
from cvllm_jax.responses.store.errors import StoreFormatError, StoreValueError

__all__ = ["MAX_DEPTH", "MAX_ID_CHARS", "AnyText", "check_id", "from_json", "to_json"]

# json's own limit depends on how deep the stack is when it is called: what was written could not be read elsewhere
MAX_DEPTH = 500
# escaped, at most ten characters for each: an index entry of PostgreSQL holds 2,704 bytes
MAX_ID_CHARS = 256


class AnyText(TypeDecorator[str]):
    """Any string of Python, readable where it is ASCII."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.encode("unicode_escape").decode("ascii")

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.encode("ascii").decode("unicode_escape")


def to_json(value: Any) -> bytes:
    """A JSON value as bytes.

    Raises:
        StoreValueError: it is no JSON value, or nests deeper than 500 levels.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise _too_deep() from None
    except (TypeError, ValueError) as error:
        raise StoreValueError(f"a value that is no JSON cannot be stored: {error}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    return text.encode("utf-8", "surrogatepass")


def from_json(data: bytes) -> Any:
    """The value that was stored."""
    try:
        return json.loads(bytes(data).decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        raise StoreFormatError("the store is damaged: a value that was read back is no JSON") from None


def check_id(value: object) -> str:
    """An id for something new.

    Raises:
        StoreValueError: it is no string of 1 to 256 characters.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS:
        raise StoreValueError(f"an id must be a string of 1 to {MAX_ID_CHARS} characters, not {shown(value)}")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list | tuple)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> StoreValueError:
    return StoreValueError(f"a value that nests deeper than {MAX_DEPTH} levels cannot be stored")
