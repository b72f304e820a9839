"""What an answer may be constrained to. Plain data: a request carries one of these to the engine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from cvllm_jax.grammar.errors import GrammarError

__all__ = [
    "AfterText",
    "Grammar",
    "JsonObjectGrammar",
    "JsonSchemaGrammar",
    "LarkGrammar",
    "RegexGrammar",
    "TextGrammar",
    "ToolCallGrammar",
    "tool_call_grammar",
]


@dataclass(frozen=True, slots=True)
class JsonSchemaGrammar:
    """One JSON value that validates against a schema.

    Properties come in the order that the schema gives them. With ``oneOf``, ``not``, ``if``, ``propertyNames``, a
    keyword of dependencies or of what is unevaluated, a count of optional properties, or a format that the standard
    does not know, they come in any order, in the whole schema.
    """

    schema: dict[str, Any] | bool


@dataclass(frozen=True, slots=True)
class JsonObjectGrammar:
    """One JSON object of any kind."""


@dataclass(frozen=True, slots=True)
class RegexGrammar:
    """Text that a regular expression (ECMA 262) matches from beginning to end."""

    pattern: str


@dataclass(frozen=True, slots=True)
class LarkGrammar:
    """Text of a context-free grammar in the Lark dialect of llguidance, whose first rule is ``start``."""

    text: str
    ends: bool = False
    """Whatever has been written, the grammar lets it come to an end. Only then is text that nothing else can follow
    written without asking the model: a grammar such as ``start: /a+/ "a"`` has no end of such text."""


@dataclass(frozen=True, slots=True)
class ToolCallGrammar:
    """``opening`` calls ``closing``, each call ``begin {"name": NAME, "arguments": {...}} end``. Made by
    :func:`tool_call_grammar`."""

    begin: str
    separator: str
    end: str
    tools: tuple[tuple[str, dict[str, Any] | bool], ...]
    at_least_one: bool
    parallel: bool
    name_key: str
    arguments_key: str
    opening: str
    closing: str
    trigger: str
    not_in_text: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextGrammar:
    """Texts within an answer: those of a grammar in the engine's Lark dialect, or those that a regular expression in
    Rust's syntax matches from beginning to end."""

    syntax: Literal["lark", "regex"]
    definition: str


@dataclass(frozen=True, slots=True)
class AfterText:
    """Any text up to and including ``marker``, then the grammar: an answer that reasons first."""

    marker: str
    grammar: JsonSchemaGrammar | JsonObjectGrammar | RegexGrammar | ToolCallGrammar


type Grammar = JsonSchemaGrammar | JsonObjectGrammar | RegexGrammar | LarkGrammar | ToolCallGrammar | AfterText
"""What :attr:`GenerationParams.grammar` takes: the language that an answer has to be of."""


def tool_call_grammar(
    begin: str,
    separator: str,
    end: str,
    tools: Iterable[tuple[str, dict[str, Any] | bool]],
    *,
    at_least_one: bool,
    parallel: bool = True,
    name_key: str = "name",
    arguments_key: str = "arguments",
    opening: str = "",
    closing: str = "",
    trigger: str | None = None,
    not_in_text: Iterable[str] = (),
) -> ToolCallGrammar:
    """The grammar for a model family whose calls are JSON between markers.

    Arguments:
        begin, end: what stands around a call; each may be a control token, but for the one that ends an answer. Both
            may be empty.
        separator: what stands between two calls.
        tools: names with the schema of their arguments, which are an object always.
        at_least_one: the answer is calls and nothing else. Otherwise it is free text, at whose end ``trigger`` may
            start calls; without one, it is calls or text that does not begin like JSON.
        parallel: more than one call is allowed.
        opening, closing: what stands around all calls together.
        trigger: what ``opening`` and ``begin`` together begin with, and text must not have in it; by default all of
            them but for whitespace at the end.
        not_in_text: patterns, in Rust's syntax, of what free text must not have in it, as it would be read as a call.

    Raises:
        GrammarError: there are no tools, or two of the same name.
    """
    listed = tuple(tools)
    names = [name for name, _ in listed]
    if not names:
        raise GrammarError("a grammar for tool calls needs at least one tool")
    if len(set(names)) < len(names):
        raise GrammarError("a grammar for tool calls needs tools of different names")
    return ToolCallGrammar(
        begin=begin,
        separator=separator,
        end=end,
        tools=listed,
        at_least_one=at_least_one,
        parallel=parallel,
        name_key=name_key,
        arguments_key=arguments_key,
        opening=opening,
        closing=closing,
        trigger=(opening + begin).rstrip() if trigger is None else trigger,
        not_in_text=tuple(not_in_text),
    )


def cache_key(grammar: Grammar) -> str:
    """Equal for grammars that compile to the same. The order of a schema's keys tells them apart: it is that of the
    properties in the answer."""
    return json.dumps([type(grammar).__name__, grammar], default=_plain)


def _plain(value: object) -> object:
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is None:
        raise TypeError(f"a {type(value).__name__} is no part of a schema")
    return [type(value).__name__, *(getattr(value, name) for name in fields)]
