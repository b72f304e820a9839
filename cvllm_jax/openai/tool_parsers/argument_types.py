"""The types that tools declare for their arguments, for formats that write every value as plain text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

__all__ = ["ArgumentTypes", "dump", "json_of", "parsed"]

_MAX_DEPTH = 20
_WORDS = {"true": "true", "1": "true", "false": "false", "0": "false"}


class ArgumentTypes:
    """What the arguments of each tool are, by their JSON schemas."""

    def __init__(self, tools: Sequence[Any] = ()) -> None:
        self._parameters: dict[str, Mapping[str, Any]] = {}
        for tool in tools or ():
            data = tool if isinstance(tool, Mapping) else tool.model_dump()
            function = data.get("function") or data
            parameters = function.get("parameters")
            if isinstance(function.get("name"), str):
                self._parameters[function["name"]] = parameters if isinstance(parameters, Mapping) else {}

    def names(self, function: str) -> list[str]:
        """The arguments of ``function`` in the schema's order; empty for an unknown one."""
        return list(self._properties(function))

    def has(self, function: str) -> bool:
        """Whether there is a tool of this name."""
        return function in self._parameters

    def of(self, function: str, argument: str) -> tuple[str, ...]:
        """The JSON types that the schema allows; empty if it says nothing."""
        properties = self._properties(function)
        if argument not in properties:
            return self.others(function)
        return tuple(dict.fromkeys(_types(properties[argument], self._parameters[function])))

    def others(self, function: str) -> tuple[str, ...]:
        """The JSON types of arguments that the schema does not name."""
        parameters = self._parameters.get(function, {})
        return tuple(dict.fromkeys(_types(parameters.get("additionalProperties"), parameters)))

    def _properties(self, function: str) -> Mapping[str, Any]:
        properties = self._parameters.get(function, {}).get("properties")
        return properties if isinstance(properties, Mapping) else {}


def _types(schema: Any, root: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return
    declared = schema.get("type")
    yield from [declared] if isinstance(declared, str) else [name for name in declared or () if isinstance(name, str)]
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if declared is None and isinstance(values, list):
        yield from map(_type_of, values)
    for key in ("anyOf", "oneOf", "allOf"):
        for choice in schema.get(key) or ():
            yield from _types(choice, root, depth + 1)
    yield from _types(_target(schema.get("$ref"), root), root, depth + 1)
    if schema.get("nullable"):
        yield "null"


def _target(reference: Any, root: Any) -> Any:
    """What a reference within the tool's own schema points at; None for any other."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    for part in reference.split("/")[1:]:
        root = root.get(unquote(part).replace("~1", "/").replace("~0", "~")) if isinstance(root, Mapping) else None
    return root


def _type_of(value: Any) -> str:
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "object"


def json_of(text: str, types: Sequence[str]) -> str:
    """JSON text of a value that was written as plain ``text``.

    JSON of one of ``types`` stays what it is; else it is the first of them that fits, else a string.
    """
    if set(types) - {"string"} and _is_json(text.strip(), types):
        return text.strip()
    for name in types:
        value = _as(name, text.strip())
        if value is not None:
            return value
    return dump(text)


def parsed(text: str) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: it is not JSON, or has a number that is too large to be read.
        RecursionError: it is nested too deep.
    """
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def dump(value: Any) -> str:
    """JSON text of ``value``. Half a surrogate pair, which UTF-8 cannot carry, is an escape; NaN is a ValueError."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace").decode()


def _is_json(text: str, types: Sequence[str]) -> bool:
    """Whether ``text`` is JSON, but for strings, of one of these types."""
    try:
        value = parsed(text)
    except (ValueError, RecursionError):
        return False
    name = _type_of(value)
    return name != "string" and (name in types or (name == "integer" and "number" in types))


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
