"""The rules of calls in a format's markup, such that whoever reads them finds arguments that validate."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cvllm_jax.errors import shown
from cvllm_jax.grammar import GrammarError, TextGrammar, ToolCallGrammar, lark, tool_call_grammar
from cvllm_jax.grammar.compiler import json_rule
from cvllm_jax.grammar.json_schema import SchemaReader
from cvllm_jax.grammar.patterns import literal
from cvllm_jax.grammar.schema_cases import Members
from cvllm_jax.grammar.schema_logic import Json, Schema
from cvllm_jax.grammar.value_rules import NUMBERS, Quotes, ValueRules, not_named, union
from cvllm_jax.openai.text_calls import text_call
from cvllm_jax.openai.tool_parsers.argument_types import ArgumentTypes, json_of
from cvllm_jax.openai.tool_parsers.call_form import CallForm, JsonCalls, NamedCalls, PythonCalls, TaggedCalls

__all__ = ["Calls", "call_grammar", "call_rules"]

_WORD = re.compile(r"\w+")
_SPACE = r"[\s\x1c-\x1f]"  # what Python's str.strip takes away
# By type, the texts that are read as a value of this type.
_MISREAD = {
    "null": f"{_SPACE}*(?:null|None){_SPACE}*",
    "boolean": f"{_SPACE}*(?:(?i:true|false)|0|1){_SPACE}*",
    "number": rf"{_SPACE}*-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?{_SPACE}*",
    "object": rf"{_SPACE}*\{{(?s:.*)",
    "array": rf"{_SPACE}*\[(?s:.*)",
}
_MISREAD["integer"] = _MISREAD["number"]
_WORDS = {"null": "null|None", "boolean": "[tT]rue|[fF]alse"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """The calls that an answer may or must consist of."""

    form: CallForm
    tools: Sequence[tuple[str, dict[str, Any] | TextGrammar]]
    """Names with the schemas of their arguments, or the grammar of the only one, ``input``."""
    required: bool
    parallel: bool


def call_grammar(calls: Calls, *, at_least_one: bool, not_in_text: str = "") -> ToolCallGrammar:
    """The calls of an answer, as the grammar package has them for calls that are plain JSON.

    Arguments:
        not_in_text: a pattern of what text must not have in it either.
    """
    form = calls.form
    keys = {"name_key": form.name_key, "arguments_key": form.arguments_key} if isinstance(form, JsonCalls) else {}
    return tool_call_grammar(
        form.begin,
        form.separator,
        form.end,
        [(name, arguments if isinstance(arguments, dict) else {}) for name, arguments in calls.tools],
        at_least_one=at_least_one,
        parallel=calls.parallel,
        opening=form.opening,
        closing=form.closing,
        trigger=form.trigger,
        not_in_text=(*form.not_in_text, *[not_in_text] * bool(not_in_text)),
        **keys,
    )


def call_rules(
    form: CallForm, name: str, arguments: dict[str, Any] | TextGrammar, prefix: str, tokens: Mapping[str, int]
) -> _Written:
    """What stands between the form's ``begin`` and ``end`` in a call of the tool ``name``.

    Arguments:
        arguments: their schema, or the grammar of the only one.
        prefix: what the names of the rules begin with.
        tokens: ids of control tokens by their text.

    Raises:
        GrammarError: the schema or grammar is invalid, or has what this format cannot have; the message names it.
    """
    if not re.fullmatch(form.names, name):
        raise GrammarError(f"the name {shown(name)} cannot be written in this model's format of calls")
    if isinstance(arguments, TextGrammar):
        return text_call(form, name, arguments, tokens), ""
    schema = {"type": "object", **arguments}
    match form:
        case JsonCalls():
            before = f'{{"{form.name_key}": {json.dumps(name, ensure_ascii=False)}, "{form.arguments_key}": '
            value = _value(form, name, schema, prefix, tokens)
            return f'{lark.quoted(before)} {value[0]} "}}"', value[1]
        case NamedCalls():
            value = _value(form, name, schema, prefix, tokens)
            return f"{lark.quoted(name)} {lark.marked(form.between, tokens)} {value[0]}", value[1]
        case PythonCalls():
            return _PythonCall(form, name, schema, prefix, tokens).written()
        case TaggedCalls():
            return _TaggedCall(form, name, schema, prefix, tokens).written()
    raise GrammarError(f"calls of the form {type(form).__name__} cannot be enforced")


type _Written = tuple[str, str]
"""An expression and the rules in it."""


def _value(
    form: JsonCalls | NamedCalls, name: str, schema: dict[str, Any], prefix: str, tokens: Mapping[str, int]
) -> _Written:
    """Arguments that are one value."""
    if form.notation is None:
        return json_rule(schema), ""
    reader = SchemaReader()
    read = reader.read(schema)
    rules = ValueRules(reader, form.notation, prefix, tokens)
    if not isinstance(form, NamedCalls) or not form.retyped:
        return rules.value(read), rules.text
    types = _types(name, schema)
    objects = [
        rules.members(
            members,
            lambda key, item: rules.value(item, _misread(types.others(name) if key is None else types.of(name, key))),
        )
        for members in _objects(rules, read)
    ]
    return f"({union(objects)})", rules.text


class _ListedArguments:
    """A call whose format has each argument by itself."""

    def __init__(
        self,
        form: PythonCalls | TaggedCalls,
        name: str,
        schema: dict[str, Any],
        prefix: str,
        tokens: Mapping[str, int],
    ) -> None:
        reader = SchemaReader()
        self._read = reader.read(schema)
        self._rules = ValueRules(reader, form.notation, prefix, tokens)
        self._tokens = tokens
        self._name = name
        self._types = _types(name, schema)

    def _arguments(
        self, names: re.Pattern[str], written: Callable[[str | None, str, Schema], str], separator: str
    ) -> str:
        """An expression for the arguments.

        Arguments:
            names: what the names of arguments may look like.
            written: an expression for an argument: by its name, None where it has another one; what spells the name;
                and its schema.
        """
        choices = []
        for members in _objects(self._rules, self._read):
            listed = {}
            for name, schema in members.properties.items():
                if schema is False:
                    continue
                if not names.fullmatch(name):
                    raise GrammarError(
                        f"the property {shown(name)} cannot be an argument in this model's format of calls"
                    )
                listed[name] = written(name, name, schema)
            other = None
            if members.others is not False:
                without = "".join(f" & ~/{pattern}/" for pattern in not_named(members))
                name = self._rules.terminal(f"/[A-Za-z_][A-Za-z0-9_]*/{without}")
                other = written(None, name, members.others)
            choices.append(self._rules.in_any_order(listed, members.required, other, separator))
        return f"({union(choices)})"


class _PythonCall(_ListedArguments):
    def written(self) -> _Written:
        def argument(name: str | None, spelled: str, schema: Schema) -> str:
            before = f'{spelled} "="' if name is None else lark.quoted(f"{name}=")
            return f"{before} {self._rules.value(schema)}"

        arguments = self._arguments(_WORD, argument, self._rules.comma)
        return f'{lark.quoted(f"{self._name}(")} {arguments} ")"', self._rules.text


class _TaggedCall(_ListedArguments):
    def __init__(self, form: TaggedCalls, name: str, *rest: Any) -> None:
        super().__init__(form, name, *rest)
        self._form = form

    def written(self) -> _Written:
        between = lark.marked(self._form.between, self._tokens)
        arguments = self._arguments(re.compile(self._form.argument_names), self._argument, "")
        return f"{lark.quoted(self._name)} {between} {arguments}", self._rules.text

    def _argument(self, name: str | None, spelled: str, schema: Schema) -> str:
        form = self._form
        if name is None:
            before, after = (lark.marked(text, self._tokens) for text in (form.before, form.after))
            return f"{before} {spelled} {after} ({self._value(self._types.others(self._name), schema)})"
        before = lark.marked(f"{form.before}{name}{form.after}", self._tokens)
        return f"{before} ({self._value(self._types.of(self._name, name), schema)})"

    def _value(self, types: Sequence[str], schema: Schema) -> str:
        """A value up to and with what closes it. What is written as text must be read as the value that was meant."""
        rules, close = self._rules, lark.marked(self._form.close, self._tokens)
        if self._form.quoted:
            return f"{rules.value(schema, _misread(types))} {close}"
        options: list[str] = []
        texts: list[list[str]] = []
        begins = ""  # what begins values that text must not be taken for
        for case in rules.cases(schema):
            constants = case.constants()
            if constants is not None:
                written = [text for value in constants for text in self._text_of(value, types)]
                options += [self._closed([literal(text)]) for text in written]
                continue
            for kind in case.types:
                if kind == "string":
                    texts.append(case.texts())
                elif kind not in types and not (kind == "integer" and "number" in types):
                    continue
                elif kind in _WORDS:
                    options.append(self._closed([_WORDS[kind]]))
                elif kind in ("integer", "number") and not case.bounds_numbers:
                    options.append(self._closed([NUMBERS[kind]]))
                else:
                    begins += {"array": r"\[", "object": r"\{"}.get(kind, "0-9-")
                    options.append(f"{rules.value(case.schema(kind))} {close}")
        for patterns in texts:
            if begins:
                patterns.append(rf"(?:[^\s\x1c-\x1f{begins}](?s:.*))?")
            if self._form.strips:
                patterns.append(r"(?:[^\s\x1c-\x1f](?:(?s:.*)[^\s\x1c-\x1f])?)?")
            options.append(self._closed(patterns or ["(?s:.*)"], _misread(types)))
        if not options:
            raise GrammarError("the schema accepts no value that can be written in this model's format of calls")
        return union(options)

    def _text_of(self, value: Json, types: Sequence[str]) -> list[str]:
        """How a constant is written; not at all where it would be read as another value."""
        meant = json.dumps(value, ensure_ascii=False)
        text = value if isinstance(value, str) else meant
        held = any(mark in text for mark in self._form.notation.forbidden)
        stripped = self._form.strips and text != text.strip()
        return [] if held or stripped or json_of(text, types) != meant else [text]

    def _closed(self, patterns: Sequence[str], misread: Sequence[str] = ()) -> str:
        """Text that matches these patterns and is not misread, up to and with what closes it."""
        quotes = Quotes(opening="", closing=self._form.close, plain=".")
        return self._rules.text_between(quotes, patterns, misread)


def _objects(rules: ValueRules, schema: Schema) -> list[Members]:
    """The members that objects of a schema may have, by its alternatives."""
    found: list[Members | None] = []
    for case in rules.cases(schema):
        if "object" in case.types:
            constants = case.constants()
            found += [case.members()] if constants is None else map(_members_of, constants)
    objects = [members for members in found if members is not None]
    if not objects:
        raise GrammarError("the schema accepts no object")
    return objects


def _members_of(value: dict[str, Json]) -> Members:
    return Members({name: {"const": item} for name, item in value.items()}, frozenset(value), False)


def _types(name: str, schema: dict[str, Any]) -> ArgumentTypes:
    """The types as the parser of the answer knows them."""
    return ArgumentTypes([{"function": {"name": name, "parameters": schema}}])


def _misread(types: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_MISREAD[kind] for kind in types if kind in _MISREAD))
