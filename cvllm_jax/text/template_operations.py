"""The price of operators and of the methods that a chat template may call.

Operators and methods are Python's own; what is added is the charge, made beforehand because an argument can
decide the cost. A method that has no price here cannot be called.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sized
from typing import Any

from cvllm_jax.text.template_budget import TemplateLimitError, spend, spend_text, spend_value

__all__ = ["METHODS", "charge_format", "charge_operator", "charge_percent_format", "charge_replace", "integer_or_zero"]

MAX_INTEGER_BITS = 4096

Arguments = tuple[Any, ...]


# Operators


def charge_operator(operator: str, left: Any, right: Any) -> None:
    """Pay for ``left operator right`` before it is computed."""
    spend()
    if operator == "%" and isinstance(left, str):
        charge_percent_format(left, right)
    elif isinstance(left, int) and isinstance(right, int):
        _charge_integers(operator, left, right)
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(value, Sized):
                _charge_length(value, max(times, 0))
    elif operator == "+":
        for value in (left, right):
            if isinstance(value, Sized):
                _charge_length(value, 1)


def _charge_integers(operator: str, left: int, right: int) -> None:
    bits = max(left.bit_length(), right.bit_length())
    if operator == "*":
        bits = left.bit_length() + right.bit_length()
    elif operator == "**":
        bits = left.bit_length() * max(right, 1)
    if bits > MAX_INTEGER_BITS:
        raise TemplateLimitError(f"it computes with integers of more than {MAX_INTEGER_BITS} bits")


def _charge_length(value: Sized, times: int) -> None:
    if isinstance(value, str):
        spend_text(len(value) * times)
    else:
        spend(len(value) * times)


_WIDTH_AND_PRECISION = re.compile(r"[#0\- +]*(\*|[0-9]+)?(?:\.(\*|[0-9]+)?)?[hlL]?")


def charge_percent_format(pattern: str, values: Any) -> None:
    """Pay for ``pattern % values``: the width of every conversion, and its value."""
    at, end, conversions = 0, len(pattern), 0
    while (at := pattern.find("%", at)) >= 0:
        at += 1
        if pattern.startswith("(", at):
            depth = 1
            at += 1
            while at < end and depth:
                depth += {"(": 1, ")": -1}.get(pattern[at], 0)
                at += 1
        match = _WIDTH_AND_PRECISION.match(pattern, at)
        for size in match.groups() if match else ():
            if size == "*":
                raise TemplateLimitError("it formats text with a width that is computed")
            _charge_width(size or "0")
        conversions += 1
        at = match.end() + 1 if match else at + 1
    _charge_formatted(pattern, conversions, values)


def charge_format(pattern: str, args: Arguments, kwargs: Mapping[str, Any]) -> None:
    """Pay for ``pattern.format(*args, **kwargs)``."""
    fields = 0
    for _, field, spec, _ in string.Formatter().parse(pattern):
        if field is None:
            continue
        fields += 1
        if "{" in (spec or ""):
            raise TemplateLimitError("it formats text with a width that is computed")
        for size in re.findall(r"[0-9]+", spec or ""):
            _charge_width(size)
    _charge_formatted(pattern, fields, (args, dict(kwargs)))


def _charge_width(digits: str) -> None:
    # int() of a long run of digits is itself slow
    spend_text(int(digits) if len(digits) < 12 else 10**12)


def _charge_formatted(pattern: str, fields: int, values: Any) -> None:
    spend_text(len(pattern))
    for _ in range(fields):  # each field may print all of the values
        spend_value(values)


# Methods of strings, lists, dicts ...: each entry is charged with (owner, arguments) before the call


def _charge_scan(text: str, args: Arguments) -> None:
    """Pay for going through a text once."""
    spend_text(len(text))
    spend_value(args)


def _charge_pieces(text: str, args: Arguments) -> None:
    spend(1 + len(text) // 8)
    spend_value(args)


def _charge_padding(text: str, args: Arguments) -> None:
    spend_text(len(text) + integer_or_zero(args[0]) if args else 0)


def _charge_tabs(text: str, args: Arguments) -> None:
    spend_text(len(text) + text.count("\t") * (integer_or_zero(args[0]) if args else 8))


def charge_replace(text: str, args: Arguments) -> None:
    spend_text(len(text))
    if len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        times = text.count(args[0])
        if len(args) > 2 and integer_or_zero(args[2]) >= 0:
            times = min(times, integer_or_zero(args[2]))
        spend_text(times * (len(args[1]) + 8))


def _charge_join(separator: str, args: Arguments) -> None:
    for values in args:
        spend_value(values)
        if isinstance(values, Sized):
            spend_text(len(separator) * len(values))


def _charge_whole(value: Any, args: Arguments) -> None:
    spend_value(value)
    spend_value(args)


def _charge_key(value: Any, args: Arguments) -> None:
    spend_value(args)


def integer_or_zero(value: Any) -> int:
    return value if isinstance(value, int) else 0


_SCANS = (
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rstrip", "startswith",
    "strip", "swapcase", "title", "upper",
)  # fmt: skip
METHODS: Mapping[type, Mapping[str, Callable[[Any, Arguments], None]]] = {
    str: {
        **dict.fromkeys(_SCANS, _charge_scan),
        **dict.fromkeys(("split", "rsplit", "splitlines"), _charge_pieces),
        **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _charge_padding),
        "expandtabs": _charge_tabs,
        "replace": charge_replace,
        "join": _charge_join,
    },
    dict: {
        "items": _charge_key, "keys": _charge_key, "values": _charge_key, "get": _charge_key, "copy": _charge_whole,
    },
    list: {"index": _charge_whole, "count": _charge_whole, "copy": _charge_whole},
    tuple: {"index": _charge_whole, "count": _charge_whole},
    range: {"index": _charge_key, "count": _charge_key},
    int: {"bit_length": _charge_key, "is_integer": _charge_key},
    float: {"is_integer": _charge_key},
}  # fmt: skip
"""The methods that a template may call."""
