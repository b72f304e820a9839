"""Grammars for answers of several parts: reasoning, then content or calls, in the markup of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cvllm_jax.grammar import (
    JsonObjectGrammar,
    JsonSchemaGrammar,
    LarkGrammar,
    RegexGrammar,
    lark,
)
from cvllm_jax.grammar.compiler import json_rule
from cvllm_jax.grammar.patterns import literal, rewrite_pattern
from cvllm_jax.openai.call_rules import Calls, call_grammar, call_rules

__all__ = ["ContentGrammar", "Thinking", "answer_grammar", "harmony_grammar"]

type ContentGrammar = JsonSchemaGrammar | JsonObjectGrammar | RegexGrammar


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """Reasoning between tags before the answer. ``begun``: the prompt has the opening one already."""

    opening: str
    closing: str
    begun: bool


def answer_grammar(
    content: ContentGrammar | None,
    calls: Calls | None,
    thinking: Thinking | None,
    control_tokens: Mapping[str, int],
) -> LarkGrammar:
    """Content of this grammar, or calls, after reasoning; without content, calls amid text unless they are required.

    Arguments:
        control_tokens: ids by their text.

    Raises:
        GrammarError: a schema or pattern is invalid, or has what cannot be enforced.
    """
    rules, bodies = "", []
    if content is not None:
        rules += _content(content)
        bodies.append("content")
    if calls is not None:
        opening = literal(thinking.opening) if thinking is not None and not thinking.begun else ""
        at_least_one = calls.required or content is not None
        rules += _calls(calls, at_least_one=at_least_one, control_tokens=control_tokens, not_in_text=opening)
        bodies.append("answer")
    before = ""
    if thinking is not None:
        until, more = _until("thought", thinking.closing, control_tokens)
        rules += f"{more}before: {until} BREAKS\nBREAKS: /\\n{{0,2}}/\n"
        before = "before " if thinking.begun else f"({lark.marked(thinking.opening, control_tokens)} before)? "
    return LarkGrammar(f"start: {before}({' | '.join(bodies)})\n{rules}", ends=True)


def harmony_grammar(
    content: ContentGrammar | None, calls: Calls | None, control_tokens: Mapping[str, int]
) -> LarkGrammar:
    """As :func:`answer_grammar`, on the channels of the harmony format. Errors are the same."""
    rules, bodies = "", []
    channel, message = (lark.marked(text, control_tokens) for text in ("<|channel|>", "<|message|>"))
    if content is not None:
        rules += _content(content)
    elif calls is not None and not calls.required:
        rules += "content: TEXT\nTEXT: /(?s:.*)/\n"
    if rules:
        bodies.append(f'{channel} "final" {message} content')
    if calls is not None:
        rules += _calls(calls, at_least_one=True, control_tokens=control_tokens)
        bodies.append("answer")
    until, more = _until("thought", "<|end|>", control_tokens)
    start = lark.marked("<|start|>assistant", control_tokens)
    rules += f'{more}analysis: {channel} "analysis" {message} {until} {start}\n'
    return LarkGrammar(f"start: analysis* ({' | '.join(bodies)})\n{rules}", ends=True)


def _content(content: ContentGrammar) -> str:
    match content:
        case JsonSchemaGrammar(schema):
            return f"content: {json_rule(schema)}\n"
        case JsonObjectGrammar():
            return f"content: {json_rule({'type': 'object'})}\n"
        case RegexGrammar(pattern):
            return f"content: CONTENT\nCONTENT: /{rewrite_pattern(pattern, whole=True)}/\n"


def _calls(calls: Calls, *, at_least_one: bool, control_tokens: Mapping[str, int], not_in_text: str = "") -> str:
    choices, rules = [], ""
    for index, (name, schema) in enumerate(calls.tools):
        choice, more = call_rules(calls.form, name, schema, f"t{index}", control_tokens)
        choices.append(choice)
        rules += more
    # The engine's terminals are greedy: text that could begin with the opening tag would take it for itself.
    spec = call_grammar(calls, at_least_one=at_least_one, not_in_text=not_in_text)
    return lark.tool_calls(spec, f"({' | '.join(choices)})", control_tokens) + rules


def _until(rule: str, marker: str, control_tokens: Mapping[str, int]) -> tuple[str, str]:
    """An expression for text up to and including the marker, and its rules. Text holds no control tokens."""
    if any(name in marker for name in control_tokens):
        return f"{rule.upper()} {lark.marked(marker, control_tokens)}", f"{rule.upper()}: /(?s:.*)/\n"
    return rule, f"{rule}[lazy]: /(?s:.*){literal(marker)}/\n"
