"""The filters and tests of chat templates: Jinja's, charged for what they do, and a ``tojson`` of their own."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

from jinja2.filters import FILTERS
from jinja2.tests import TESTS

from cvllm_jax.text.template_budget import (
    CHARACTERS_PER_STEP,
    TemplateLimitError,
    counted,
    spend,
    spend_text,
    spend_value,
)
from cvllm_jax.text.template_operations import charge_percent_format, charge_replace, integer_or_zero

__all__ = ["bounded_filters", "bounded_tests"]

MAX_INDENT = 64
MAX_DECIMALS = 100

# Out: what makes HTML, and what prints Python's own view of things.
_LEFT_OUT = {"urlize", "xmlattr", "pprint", "striptags", "wordwrap", "forceescape"}
# These look at elements one by one, as they are drawn.
_LAZY = {"map", "select", "selectattr", "reject", "rejectattr"}
# These pass elements on without looking into them.
_BY_REFERENCE = {"list", "last", "random", "batch", "slice", "reverse", "items"}
_AT_ONCE = {"length", "count", "first", "default", "d", "attr"}
_SORTS = {"sort", "unique", "groupby", "dictsort", "min", "max"}


def bounded_filters() -> dict[str, Callable[..., Any]]:
    """Jinja's filters, charged, with the ``tojson`` of chat templates."""
    filters = {name: _bounded(name, function) for name, function in FILTERS.items() if name not in _LEFT_OUT}
    filters["tojson"] = _to_json
    return filters


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    at = 1 if hasattr(function, "jinja_pass_arg") else 0  # Jinja puts its context before the value

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        spend()
        value, rest = args[at], args[at + 1 :]
        if name in _LAZY:
            if isinstance(value, Iterable):
                value = counted(value, _price_per_element(rest, kwargs))
        elif name not in _AT_ONCE:
            if isinstance(value, Iterator):
                value = list(counted(value))
            if name in _BY_REFERENCE:
                spend(len(value) if isinstance(value, Sized) else 1)
            else:
                spend_value(rest)
                for _ in range(_price_per_element(rest, kwargs) if name in _SORTS else 1):
                    spend_value(value)
        charge = _CHARGES.get(name)
        if charge is not None:
            charge(value, *rest, **kwargs)
        result = function(*args[:at], value, *rest, **kwargs)
        if isinstance(result, str):
            spend_text(len(result))
        return result

    return bounded


def _price_per_element(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """For looking up an attribute, which may be a path ``a.b.c``, or calling another filter or test."""
    names = sum(len(value) for value in (*args, *kwargs.values()) if isinstance(value, str))
    return 4 + names // 8


def _charge_batch(value: Any, linecount: int, fill_with: Any = None) -> None:
    spend(integer_or_zero(linecount))


def _charge_slice(value: Any, slices: int, fill_with: Any = None) -> None:
    spend(integer_or_zero(slices))


def _charge_center(value: Any, width: int = 80) -> None:
    spend_text(integer_or_zero(width))


def _charge_indent(value: Any, width: int | str = 4, *_: Any, **__: Any) -> None:
    columns = len(width) if isinstance(width, str) else integer_or_zero(width)
    spend_text(columns * (str(value).count("\n") + 1))


def _charge_replace_filter(value: Any, old: Any, new: Any, count: int | None = None) -> None:
    charge_replace(str(value), (str(old), str(new)) if count is None else (str(old), str(new), count))


def _charge_join_filter(value: Any, d: str = "", attribute: Any = None) -> None:
    if isinstance(value, Sized):
        spend_text(len(str(d)) * len(value))
        _charge_attribute(value, attribute)


def _charge_format_filter(value: Any, *args: Any, **kwargs: Any) -> None:
    charge_percent_format(str(value), args or kwargs)


def _charge_round(value: Any, precision: int = 0, method: str = "common") -> None:
    if abs(integer_or_zero(precision)) > MAX_DECIMALS:
        raise TemplateLimitError(f"it rounds to more than {MAX_DECIMALS} decimals")


def _charge_sum(value: Any, attribute: Any = None, start: Any = 0) -> None:
    if isinstance(value, Collection):
        _charge_attribute(value, attribute)
        if isinstance(start, list | tuple):  # lists are added one to the next, each sum a new list
            total = len(start) + sum(len(item) for item in value if isinstance(item, Sized))
            spend(total * len(value) // CHARACTERS_PER_STEP)


def _charge_attribute(value: Sized, attribute: Any) -> None:
    if attribute is not None:
        spend(len(value) * _price_per_element((attribute,), {}))


_CHARGES: Mapping[str, Callable[..., None]] = {
    "batch": _charge_batch,
    "slice": _charge_slice,
    "center": _charge_center,
    "indent": _charge_indent,
    "replace": _charge_replace_filter,
    "join": _charge_join_filter,
    "format": _charge_format_filter,
    "round": _charge_round,
    "sum": _charge_sum,
}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escaping for HTML that Jinja's own filter adds."""
    columns = len(indent) if isinstance(indent, str) else integer_or_zero(indent)
    if columns > MAX_INDENT or any(len(separator) > MAX_INDENT for separator in separators or ()):
        raise TemplateLimitError(f"it indents JSON by more than {MAX_INDENT} characters")
    spend_value(value)
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None:
        return encoder.encode(value)
    pieces = []
    for piece in encoder.iterencode(value):  # indentation grows with the depth: counted as it comes
        spend_text(len(piece))
        pieces.append(piece)
    return "".join(pieces)


# Tests

_COMPARES = {"in", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", "ge", ">=", "<", "lt", "lessthan"}
_COMPARES |= {"<=", "le", "lower", "upper"}


def bounded_tests() -> dict[str, Callable[..., Any]]:
    """Jinja's tests, with the comparing ones charged."""
    tests: dict[str, Any] = {**TESTS}
    return tests | {name: _bounded_test(function) for name, function in tests.items() if name in _COMPARES}


def _bounded_test(function: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def bounded(*args: Any) -> Any:
        for value in args:
            spend_value(value)
        return function(*args)

    return bounded
