"""Pydantic's findings in the words of OpenAI's API: one sentence, ``param`` and ``code``."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cvllm_jax.openai.errors import RequestError

__all__ = ["describe_error"]

# pydantic's error type -> what was expected, with its article
_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a decimal",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}

_MAX_SHOWN = 100


def describe_error(error: ValidationError, data: Any) -> RequestError:
    """The most telling finding of ``error`` about ``data`` as a RequestError.

    Alternatives of a union fail one by one; the finding that reaches deepest into the data
    belongs to the alternative that was meant.
    """
    findings = [(_path(item, data), item) for item in error.errors(include_url=False)]
    if not isinstance(data, dict):
        return RequestError(f"The request must be a JSON object, not {_kind(data)}.", code="invalid_type")
    deepest = max(len(path) for path, _ in findings)
    path = next(path for path, _ in findings if len(path) == deepest)
    same_place = [item for other_path, item in findings if other_path == path]
    item = min(same_place, key=_rank)
    message, code = _sentence(_param(path), item, same_place)
    tag = item["type"] in ("union_tag_invalid", "union_tag_not_found")
    return RequestError(message, param=_param((*path, "type") if tag else path), code=code)


def _rank(item: ErrorDetails) -> int:
    """How little a finding helps beside others of the same place, which alternatives of a union give."""
    if item["type"] in ("union_tag_invalid", "union_tag_not_found") and isinstance(item["input"], dict):
        return 0  # an object is meant, so what other alternatives say about it is beside the point
    return 2 if item["type"] in _EXPECTED else 1


def _path(item: ErrorDetails, data: Any) -> tuple[int | str, ...]:
    """Where a finding lies in the data, without the names of union alternatives."""
    path: list[int | str] = []
    for step in item["loc"]:
        if isinstance(data, dict):
            inside = step in data
        else:
            inside = isinstance(data, list) and isinstance(step, int) and step < len(data)
        if inside:
            data = data[step]
            path.append(step)
    if item["type"] == "missing":
        path.append(item["loc"][-1])
    return tuple(path)


def _param(path: tuple[int | str, ...]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _sentence(param: str, item: ErrorDetails, same_place: list[ErrorDetails]) -> tuple[str, str]:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "missing":
        return f"Missing required parameter: '{param}'.", "missing_required_parameter"
    if kind in _EXPECTED:
        expected = dict.fromkeys(_EXPECTED[other["type"]] for other in same_place if other["type"] in _EXPECTED)
        wanted = "one of " + " or ".join(expected) if len(expected) > 1 else next(iter(expected))
        return (
            f"Invalid type for '{param}': expected {wanted}, but got {_kind(value)} instead.",
            "invalid_type",
        )
    if kind in ("greater_than_equal", "less_than_equal", "greater_than"):
        number = "integer" if isinstance(value, int) and isinstance(next(iter(context.values())), int) else "decimal"
        low = kind != "less_than_equal"
        sign = {"greater_than_equal": ">=", "less_than_equal": "<=", "greater_than": ">"}[kind]
        return (
            f"Invalid '{param}': {number} {'below minimum' if low else 'above maximum'} value. "
            f"Expected a value {sign} {_bound(context)}, but got {_shown(value)} instead.",
            f"{number}_{'below_min' if low else 'above_max'}_value",
        )
    if kind == "finite_number":
        return f"Invalid '{param}': expected a finite number, but got {value} instead.", "invalid_value"
    if kind == "union_tag_not_found":
        return f"Missing required parameter: '{param}.type'.", "missing_required_parameter"
    if kind == "union_tag_invalid":
        return (
            f"Invalid value: {_shown(context['tag'])}. Supported values are: {context['expected_tags']}.",
            "invalid_value",
        )
    if kind == "literal_error":
        return (
            f"Invalid value: {_shown(value)}. Supported values are: {context['expected']}.",
            "invalid_value",
        )
    if kind == "too_long":
        return (
            f"Invalid '{param}': array too long. Expected an array with maximum length "
            f"{context['max_length']}, but got an array with length {context['actual_length']} instead."
        ), "array_above_max_length"
    if kind == "too_short":
        return (
            f"Invalid '{param}': empty array. Expected an array with minimum length {context['min_length']}, "
            "but got an empty array instead."
        ), "empty_array"
    if kind == "string_pattern_mismatch":
        return (
            f"Invalid '{param}': string does not match pattern. Expected a string that matches the pattern "
            f"'{context['pattern']}'."
        ), "invalid_value"
    if kind == "string_too_long":
        return (
            f"Invalid '{param}': string too long. Expected a string with maximum length {context['max_length']}, "
            f"but got a string with length {len(value)} instead."
        ), "string_above_max_length"
    if kind == "string_too_short":
        return f"Invalid '{param}': empty string. Expected a string of at least 1 character.", "empty_string"
    return f"Invalid '{param}': {item['msg']}.", "invalid_value"


def _bound(context: dict[str, Any]) -> int | float:
    """The limit that was crossed; whole limits as integers."""
    bound = next(iter(context.values()))
    return int(bound) if bound == int(bound) else bound


def _kind(value: Any) -> str:
    """The JSON type of ``value``, with its article."""
    if value is None:
        return "null"
    for types, name in (
        (bool, "a boolean"), (int, "an integer"), (float, "a decimal"), (str, "a string"),
        (list, "an array"), (dict, "an object"),
    ):  # fmt: skip
        if isinstance(value, types):
            return name
    return f"a {type(value).__name__}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
