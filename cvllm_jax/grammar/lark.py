"""Grammars of several parts, in the Lark dialect of the constraint engine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from cvllm_jax.grammar.patterns import literal
from cvllm_jax.grammar.spec import ToolCallGrammar

__all__ = ["after_text", "marked", "tool_calls"]


def marked(text: str, control_tokens: Mapping[str, int]) -> str:
    """An expression for this very text, in which what spells a control token is that token."""
    if not text:
        return ""
    names = sorted((name for name in control_tokens if name in text), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    return " ".join(
        f"<[{control_tokens[piece]}]>" if piece in control_tokens else json.dumps(piece, ensure_ascii=False)
        for piece in pieces
        if piece
    )


def tool_calls(grammar: ToolCallGrammar, call: str, control_tokens: Mapping[str, int]) -> str:
    """Rules whose ``answer`` is what :class:`ToolCallGrammar` describes.

    Arguments:
        call: an expression for the JSON of a call.
        control_tokens: ids by their text.
    """
    begin, separator, end = (
        marked(text, control_tokens) for text in (grammar.begin, grammar.separator, grammar.end)
    )
    rules = f"json: {call}\n"
    calls = f"call ({separator} call)*" if grammar.parallel else "call"
    if grammar.at_least_one:
        return f"{rules}call: {begin} json {end}\nanswer: {calls}\n"
    trigger = grammar.begin.rstrip()  # a call that goes on without the space is still one to who reads it
    if not trigger:
        text = r"TEXT: /[^\s{\[](?s:.*)/"
        return f"{rules}call: {begin} json {end}\nanswer: {calls} | TEXT?\n{text}\n"
    rest = marked(grammar.begin.removeprefix(trigger), control_tokens)
    # Where the trigger begins with a control token, text must not spell it either.
    until, rules_until = _until(trigger, control_tokens, "until", "TEXT")
    plain = f"TEXT: /(?s:.*)/ & ~/(?s:.*){literal(trigger)}(?s:.*)/"
    return (
        f"{rules}{rules_until}call: {until} {rest} json {end}\n"
        f"answer: call{'*' if grammar.parallel else '?'} TEXT\n{plain}\n"
    )


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
