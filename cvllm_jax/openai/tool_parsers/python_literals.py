"""Python literals as JSON text. Nothing is evaluated."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from cvllm_jax.openai.tool_parsers.argument_types import dump, parsed

__all__ = ["json_of_literal"]

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_KNOWN_ESCAPES = frozenset("\\'\"abfnrtvxuUN01234567\n")
_TOKEN = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|[A-Za-z_]\w*|[^'"A-Za-z_]+|.""", re.DOTALL)
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_JSON_WORDS = {"true": True, "false": False, "null": None}


def json_of_literal(source: str) -> str:
    """JSON text of the literal ``source``; of ``source`` itself, as a string, if it is none that JSON can express.

    JSON counts as a literal too, whole or within Python's: what is JSON but for Python's words and strings is passed
    on as it is written.
    """
    source = source.strip()
    try:
        text = "".join(map(_json_token, _TOKEN.findall(source)))
        parsed(text)
        return text
    except (ValueError, SyntaxError, RecursionError):
        pass  # other literals: tuples, strings in three quotes
    try:
        value = _value(ast.parse(_ESCAPE.sub(_plain_escape, source), mode="eval").body)
        return dump(value)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return dump(source)


def _json_token(token: str) -> str:
    """JSON's spelling of a token: of Python's words, and of strings that are not JSON's already."""
    if token[0] not in "\"'":
        return _PYTHON_WORDS.get(token, token)
    try:
        json.loads(token)
        return token
    except ValueError:
        return dump(_value(ast.parse(_ESCAPE.sub(_plain_escape, token), mode="eval").body))


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
