"""How the values in calls are written, for formats that have more than plain JSON."""

from __future__ import annotations

from collections.abc import Sequence

from cvllm_jax.grammar.value_rules import Notation, Quotes

__all__ = ["PYTHON", "json_between", "json_without"]

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


def json_between(delimiters: Sequence[tuple[str, str]], forbidden: Sequence[str], *, bare_names: bool) -> Notation:
    """JSON whose strings stand between ``delimiters``, without escapes, of which the first are written.

    Arguments:
        bare_names: names of members have no quotes.
    """
    opening, closing = delimiters[0]
    marks = dict.fromkeys([*(mark for pair in delimiters for mark in pair), *forbidden])
    name = Quotes(opening="", closing="", plain="[A-Za-z0-9_]", least=1) if bare_names else _JSON
    return Notation(
        strings=(Quotes(opening=opening, closing=closing, plain="(?s:.)"),),
        names=(name,),
        words=_WORDS,
        takes_json=False,
        forbidden=tuple(marks),
    )
