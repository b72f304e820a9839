"""How the values in calls are written, for formats that have more than plain JSON."""

from __future__ import annotations

from collections.abc import Sequence

from cvllm_jax.grammar.value_rules import Notation, Quotes

__all__ = ["PYTHON", "json_without"]

_WORDS = {"null": ("null",), "true": ("true",), "false": ("false",)}
_JSON = Quotes(opening='"', closing='"', plain=r'[^"\\\x00-\x1f]', escapes=r'\\[\\"nrtbf]')
_DOUBLE = Quotes(opening='"', closing='"', plain=r'[^"\\\x00-\x1f]', escapes=r"\\[\\'\x22nrt]")
_SINGLE = Quotes(opening="'", closing="'", plain=r"[^'\\\x00-\x1f]", escapes=r"\\[\\'\x22nrt]")

PYTHON = Notation(
    strings=(_DOUBLE, _SINGLE),
    names=(_DOUBLE, _SINGLE),
    words={"null": ("None", "null"), "true": ("True", "true"), "false": ("False", "false")},
    takes_json=True,
)
"""Python's literals, and JSON's."""


def json_without(forbidden: Sequence[str]) -> Notation:
    """JSON without these texts in any string: a value ends there for who reads it."""
    return Notation(strings=(_JSON,), names=(_JSON,), words=_WORDS, takes_json=False, forbidden=tuple(forbidden))
