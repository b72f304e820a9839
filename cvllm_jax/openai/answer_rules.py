"""Grammars for answers of several parts: reasoning, then content or calls, in the markup of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cvllm_jax.grammar import (
    JsonObjectGrammar,
    JsonSchemaGrammar,
    LarkGrammar,
    RegexGrammar,
    lark,
    tool_call_grammar,
)
from cvllm_jax.grammar.compiler import json_rule
from cvllm_jax.grammar.patterns import literal, rewrite_pattern
from cvllm_jax.openai.tool_parsers.call_form import CallForm, JsonCalls

__all__ = ["Calls", "ContentGrammar", "Thinking", "answer_grammar", "harmony_grammar"]

type ContentGrammar = JsonSchemaGrammar | JsonObjectGrammar | RegexGrammar


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """The calls that an answer may or must consist of."""

    form: CallForm
    tools: Sequence[tuple[str, dict[str, Any]]]
    """Names with the schemas of their arguments."""
    required: bool
    parallel: bool


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
        rules += _calls(calls, at_least_one=calls.required or content is not None, control_tokens=control_tokens)
        bodies.append("answer")
    before = ""
    if thinking is not None:
        until, more = _until("thought", thinking.closing, control_tokens)
        rules += f"{more}before: {until} BREAKS\nBREAKS: /\\n{{0,2}}/\n"
        before = "before " if thinking.begun else f"({lark.marked(thinking.opening, control_tokens)} before)? "
    return LarkGrammar(f"start: {before}({' | '.join(bodies)})\n{rules}")


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
    return LarkGrammar(f"start: analysis* ({' | '.join(bodies)})\n{rules}")


def _content(content: ContentGrammar) -> str:
    match content:
        case JsonSchemaGrammar(schema):
            return f"content: {json_rule(schema)}\n"
        case JsonObjectGrammar():
            return f"content: {json_rule({'type': 'object'})}\n"
        case RegexGrammar(pattern):
            return f"content: CONTENT\nCONTENT: /{rewrite_pattern(pattern, whole=True)}/\n"


def _calls(calls: Calls, *, at_least_one: bool, control_tokens: Mapping[str, int]) -> str:
    form = calls.form
    spec = tool_call_grammar(
        form.begin, form.separator, form.end, calls.tools, at_least_one=at_least_one, parallel=calls.parallel
    )
    choices = " | ".join(_call(form, name, schema, control_tokens) for name, schema in calls.tools)
    return lark.tool_calls(spec, f"({choices})", control_tokens)


def _call(form: CallForm, name: str, schema: dict[str, Any], control_tokens: Mapping[str, int]) -> str:
    arguments = json_rule({"type": "object", **schema})
    if isinstance(form, JsonCalls):
        opening = f'{{"{form.name_key}": {json.dumps(name, ensure_ascii=False)}, "{form.arguments_key}": '
        return f'{json.dumps(opening, ensure_ascii=False)} {arguments} "}}"'
    between = lark.marked(form.between, control_tokens)
    return f"{json.dumps(name, ensure_ascii=False)} {between} {arguments}"


def _until(rule: str, marker: str, control_tokens: Mapping[str, int]) -> tuple[str, str]:
    """An expression for text up to and including the marker, and its rules. Text holds no control tokens."""
    if any(name in marker for name in control_tokens):
        return f"{rule.upper()} {lark.marked(marker, control_tokens)}", f"{rule.upper()}: /(?s:.*)/\n"
    return rule, f"{rule}[lazy]: /(?s:.*){literal(marker)}/\n"
