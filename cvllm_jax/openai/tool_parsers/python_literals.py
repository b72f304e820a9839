"""Python literals as JSON text. Nothing is evaluated."""

from __future__ import annotations

import ast
import re
from typing import Any

from cvllm_jax.openai.tool_parsers.argument_types import dump

__all__ = ["json_of_literal"]

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_KNOWN_ESCAPES = frozenset("\\'\"abfnrtvxuUN01234567\n")
_JSON_WORDS = {"true": True, "false": False, "null": None}


def json_of_literal(source: str) -> str:
    """JSON text of the literal ``source``; of ``source`` itself, as a string, if it is none that JSON can express.

    JSON's own words for true, false and null count as literals too.
    """
    source = source.strip()
    try:
        value = _value(ast.parse(_ESCAPE.sub(_plain_escape, source), mode="eval").body)
        return dump(value)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return dump(source)


def _plain_escape(match: re.Match[str]) -> str:
    """Backslashes that escape nothing stay; Python would warn of each of them."""
    return match[0] if match[1] in _KNOWN_ESCAPES else "\\" + match[0]


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id=("true" | "false" | "null") as word):
            return _JSON_WORDS[word]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case _:
            raise ValueError("not a literal")


def _key(node: ast.expr | None) -> str:
    match node:
        case ast.Constant(value=str() as key):
            return key
        case _:
            raise ValueError("a key of a JSON object is a string")
