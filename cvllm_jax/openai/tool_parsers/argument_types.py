"""The types that tools declare for their arguments, for formats that write every value as plain text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["ArgumentTypes", "dump", "json_of"]

_WORDS = {"true": "true", "1": "true", "false": "false", "0": "false"}


class ArgumentTypes:
    """What the arguments of each tool are, by their JSON schemas."""

    def __init__(self, tools: Sequence[Any] = ()) -> None:
        self._properties: dict[str, Mapping[str, Any]] = {}
        for tool in tools or ():
            data = tool if isinstance(tool, Mapping) else tool.model_dump()
            function = data.get("function") or data
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
            if isinstance(function.get("name"), str):
                self._properties[function["name"]] = properties if isinstance(properties, Mapping) else {}

    def names(self, function: str) -> list[str]:
        """The arguments of ``function`` in the schema's order; empty for an unknown one."""
        return list(self._properties.get(function, ()))

    def of(self, function: str, argument: str) -> tuple[str, ...]:
        """The JSON types that the schema allows; empty if it says nothing."""
        return tuple(_types(self._properties.get(function, {}).get(argument)))


def _types(schema: Any) -> Iterator[str]:
    if not isinstance(schema, Mapping):
        return
    declared = schema.get("type")
    yield from [declared] if isinstance(declared, str) else [name for name in declared or () if isinstance(name, str)]
    for choice in (*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())):
        yield from _types(choice)
    if schema.get("nullable"):
        yield "null"


def json_of(text: str, types: Sequence[str]) -> str:
    """JSON text of a value that was written as plain ``text``: the first of ``types`` that fits it, else a string."""
    for name in types:
        value = _as(name, text.strip())
        if value is not None:
            return value
    return dump(text)


def dump(value: Any) -> str:
    """JSON text of ``value``. Half a surrogate pair, which UTF-8 cannot carry, is an escape; NaN is a ValueError."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace").decode()


def _as(name: str, text: str) -> str | None:
    """``text`` as JSON of the type ``name``, or None if it is not of that type."""
    if name == "null":
        return "null" if text in ("null", "None") else None
    if name == "boolean":
        return _WORDS.get(text.lower())
    if name not in ("integer", "number", "object", "array"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if name in ("object", "array"):
        return text if isinstance(value, dict if name == "object" else list) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if name == "integer" and isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return text
