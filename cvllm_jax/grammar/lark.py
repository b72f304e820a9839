"""Grammars of several parts, in the Lark dialect of the constraint engine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

from cvllm_jax.grammar.patterns import literal
from cvllm_jax.grammar.spec import ToolCallGrammar

__all__ = ["NOT_FORCING", "after_text", "around", "cut", "marked", "quoted", "tool_calls"]

NOT_FORCING = '%llguidance {"no_forcing": true}\n'
"""In a grammar or a part of one: the engine never goes on by itself with what is the only way to go on."""


def quoted(text: str) -> str:
    """An expression for this very text."""
    return json.dumps(text, ensure_ascii=False)


def marked(text: str, control_tokens: Mapping[str, int]) -> str:
    """An expression for this very text, in which what spells a control token is that token."""
    if not text:
        return ""
    return " ".join(
        f"<[{control_tokens[piece]}]>" if piece in control_tokens else quoted(piece)
        for piece in _pieces(text, control_tokens)
        if piece
    )


def _pieces(text: str, control_tokens: Mapping[str, int]) -> list[str]:
    """The text cut at control tokens, which stand between what is plain text, empty or not."""
    names = sorted((name for name in control_tokens if name in text), key=len, reverse=True)
    return re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]


def cut(text: str, control_tokens: Mapping[str, int]) -> tuple[str, str]:
    """The text up to the first control token that it spells, and the rest."""
    plain, *rest = _pieces(text, control_tokens)
    return plain, "".join(rest)


def around(
    opening: str, body: str, closing: str, control_tokens: Mapping[str, int], terminal: Callable[[str], str]
) -> str:
    """An expression for the terminal ``body`` between two texts.

    What of these is no control token becomes one terminal with the body: a terminal goes on as long as it can, so that
    of two the first would swallow the other's beginning.

    Arguments:
        terminal: names a new terminal.
    """
    *before, left = _pieces(opening, control_tokens)
    right, *after = _pieces(closing, control_tokens)
    whole = terminal(" ".join([quoted(left)] * bool(left) + [body] + [quoted(right)] * bool(right)))
    return f"{marked(''.join(before), control_tokens)} {whole} {marked(''.join(after), control_tokens)}".strip()


def tool_calls(grammar: ToolCallGrammar, call: str, control_tokens: Mapping[str, int]) -> str:
    """Rules whose ``answer`` is what :class:`ToolCallGrammar` describes.

    Arguments:
        call: an expression for what stands between ``begin`` and ``end``.
        control_tokens: ids by their text.
    """
    opening, begin, separator, end, closing = (
        marked(text, control_tokens)
        for text in (grammar.opening, grammar.begin, grammar.separator, grammar.end, grammar.closing)
    )
    rules = f"json: {call}\ncall: {begin} json {end}\n"
    more = f"({separator} call)*" if grammar.parallel else ""
    calls = f"calls: {opening} call {more} {closing}\n"
    if grammar.at_least_one:
        return f"{rules}{calls}answer: calls\n"
    if not grammar.trigger:
        text = r"/[^\s{\[](?s:.*)/" + _without(grammar.not_in_text)
        return f"{rules}{calls}answer: calls | TEXT?\nTEXT: {text}\n"
    # A call that goes on otherwise after the trigger is still one to who reads it. Where it begins with a control
    # token, text must not spell it either.
    rest = marked((grammar.opening + grammar.begin).removeprefix(grammar.trigger), control_tokens)
    text = "/(?s:.*)/" + _without((literal(grammar.trigger), *grammar.not_in_text))
    if any(name in grammar.trigger for name in control_tokens):
        until = f"TEXT {marked(grammar.trigger, control_tokens)}"
    else:
        until = "until"
        rules += f"until[lazy]: UNTIL\nUNTIL: BEFORE_CALL {quoted(grammar.trigger)}\n"
        rules += f"BEFORE_CALL: /(?s:.*)/{_without(grammar.not_in_text)}\n"
    # Messages have their calls after their text. A model that was kept from the call that it meant would go on with the
    # rest of that one, as text.
    if not (grammar.opening or grammar.closing):
        more = "(GAP call)*" if grammar.parallel else ""
    calls = f"calls: {until} {rest} json {end} {more} {closing} GAP\nGAP: /\\s{{0,4}}/\n"
    return f"{rules}{calls}answer: calls | TEXT\nTEXT: {text}\n"


def _without(patterns: Sequence[str]) -> str:
    """What leaves out of a terminal the texts that have one of these in them."""
    return f" & ~/(?s:.*)(?:{'|'.join(patterns)})(?s:.*)/" if patterns else ""


def after_text(marker: str, control_tokens: Mapping[str, int]) -> str:
    """Rules whose ``before`` is any text up to and including the marker, with the line breaks that models put there."""
    # names of its own: what follows may be free text with calls
    until, rules = _until(marker, control_tokens, "until_marker", "BEFORE")
    plain = f"BEFORE: /(?s:.*)/ & ~/(?s:.*){literal(marker)}(?s:.*)/"
    return f'{rules}before: {until} BREAKS\nBREAKS: /\\n{{0,2}}/\n{plain}\n'


def _until(marker: str, control_tokens: Mapping[str, int], rule: str, text: str) -> tuple[str, str]:
    """An expression for text up to and including the marker's first appearance, and its rules beside ``text``."""
    if any(name in marker for name in control_tokens):
        return f"{text} {marked(marker, control_tokens)}", ""
    return rule, f"{rule}[lazy]: /(?s:.*){literal(marker)}/\n"
