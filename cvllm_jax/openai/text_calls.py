"""Calls in a format's markup whose only argument, ``input``, is a text of some grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from cvllm_jax.errors import shown
from cvllm_jax.grammar import GrammarError, TextGrammar, lark
from cvllm_jax.grammar.embedded import in_json_string, up_to
from cvllm_jax.grammar.value_rules import Notation
from cvllm_jax.openai.tool_parsers.call_form import CallForm, JsonCalls, NamedCalls, PythonCalls, TaggedCalls

__all__ = ["text_call"]

# What escapes are made of.
_IN_ESCAPES = frozenset('"\\bfnrtu0123456789abcdef')


def text_call(form: CallForm, name: str, grammar: TextGrammar, control_tokens: Mapping[str, int]) -> str:
    """An expression, for a Lark grammar, of what stands between the form's ``begin`` and ``end``.

    Arguments:
        control_tokens: ids by their text.

    Raises:
        GrammarError: the grammar is invalid, or this format cannot have it.
    """
    match form:
        case JsonCalls():
            begin = f'{{"{form.name_key}": {json.dumps(name, ensure_ascii=False)}, "{form.arguments_key}": '
            return _object(begin, form.notation, grammar, "}", control_tokens)
        case NamedCalls():
            return _object(f"{name}{form.between}", form.notation, grammar, "", control_tokens)
        case PythonCalls():  # JSON's escapes are Python's
            return _string(f"{name}(input=", (), grammar, ")", control_tokens)
        case TaggedCalls():
            begin = f"{name}{form.between}{form.before}input{form.after}"
            forbidden = form.notation.forbidden
            if form.quoted:
                return _string(begin, forbidden, grammar, form.close, control_tokens)
            return _plain(begin, forbidden, grammar, form.close, control_tokens, strips=form.strips)
    raise GrammarError(f"calls of the form {type(form).__name__} cannot be enforced")


def _object(
    begin: str, notation: Notation | None, grammar: TextGrammar, end: str, control_tokens: Mapping[str, int]
) -> str:
    if notation is None:
        return _string(f'{begin}{{"input": ', (), grammar, f"}}{end}", control_tokens)
    name, quotes = notation.names[0], notation.strings[0]
    begin += f"{{{name.opening}input{name.closing}:{' ' if name.opening else ''}"
    if quotes.escapes:
        return _string(begin, notation.forbidden, grammar, f"}}{end}", control_tokens)
    close = f"{quotes.closing}}}{end}"
    return _plain(begin + quotes.opening, notation.forbidden, grammar, close, control_tokens)


def _string(
    begin: str, forbidden: Sequence[str], grammar: TextGrammar, end: str, control_tokens: Mapping[str, int]
) -> str:
    """An expression with the text as a JSON string."""
    text = in_json_string(grammar, "".join({_missing_from_escapes(mark) for mark in forbidden}))
    return f"{lark.marked(f'{begin}\"', control_tokens)} {text} {lark.marked(f'\"{end}', control_tokens)}"


def _missing_from_escapes(mark: str) -> str:
    """A character without which a JSON string cannot have ``mark`` in it."""
    for character in mark:
        if character.isascii() and character not in _IN_ESCAPES:
            return character
    raise GrammarError(f"strings without {shown(mark)} cannot be written in this model's format of calls")


def _plain(
    begin: str,
    forbidden: Sequence[str],
    grammar: TextGrammar,
    close: str,
    control_tokens: Mapping[str, int],
    *,
    strips: bool = False,
) -> str:
    """An expression with the text as it is."""
    first, rest = lark.cut(close, control_tokens)
    text = up_to(first, grammar, tuple(forbidden), strips=strips)
    return f"{lark.marked(begin, control_tokens)} {text} {lark.marked(rest, control_tokens)}"
