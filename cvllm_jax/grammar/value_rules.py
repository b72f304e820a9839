"""Rules of a Lark grammar for values that validate against schemas, in other notations than plain JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cvllm_jax.errors import shown
from cvllm_jax.grammar import lark
from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.json_schema import SchemaReader
from cvllm_jax.grammar.patterns import literal
from cvllm_jax.grammar.schema_cases import Case, Members, schema_cases
from cvllm_jax.grammar.schema_logic import Json, Schema

__all__ = ["NUMBERS", "Notation", "Quotes", "ValueRules", "compact_json", "not_named", "union"]

MAX_RULES = 2_000
MAX_MEMBERS = 60
"""Of one object: which of them have been written is kept in the 64 bits of a rule's parameter."""

_SEPARATOR, _COLON = r",(?:\x20|\r?\n[\x20\t]{0,64})?", r":\x20?"
# Bounded so that no double overflows.
NUMBERS = {
    "integer": r"-?(?:0|[1-9][0-9]{0,200})",
    "number": r"-?(?:0|[1-9][0-9]{0,200})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?",
}
"""Patterns of whole numbers and of numbers, as JSON has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotes:
    """What stands around a string or a name, and what within."""

    opening: str
    closing: str
    plain: str
    """A class of characters that mean themselves."""
    escapes: str = ""
    """A pattern of escape sequences."""
    least: int = 0
    """The number of characters that there must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notation:
    """How values are written."""

    strings: tuple[Quotes, ...]
    names: tuple[Quotes, ...]
    """Of the members of objects."""
    words: Mapping[str, tuple[str, ...]]
    """How null, true and false may be spelled."""
    takes_json: bool
    """JSON is read as itself, so that a value may be written as JSON too."""
    forbidden: tuple[str, ...] = ()
    """Texts that no string may hold, as they end the value for who reads it."""


class ValueRules:
    """Collects rules whose names begin with ``prefix``.

    Arguments:
        reader: has read the schemas.
        control_tokens: ids by their text.
    """

    def __init__(
        self, reader: SchemaReader, notation: Notation, prefix: str, control_tokens: Mapping[str, int]
    ) -> None:
        self.reader = reader
        self._notation = notation
        self._prefix = prefix
        self._control_tokens = control_tokens
        self._names: dict[tuple[str, tuple[str, ...]], str] = {}
        self._rules: dict[str, str] = {}
        self.comma = self.terminal(f"/{_SEPARATOR}/")
        self._colon = self.terminal(f"/{_COLON}/")

    @property
    def text(self) -> str:
        """The rules."""
        return "".join(f"{name}: {body}\n" for name, body in self._rules.items())

    def rule(self, body: str) -> str:
        """The name of a new rule."""
        return self._add(f"{self._prefix}_{len(self._rules)}", body)

    def terminal(self, body: str) -> str:
        """The name of a new terminal."""
        return self._add(f"{self._prefix}_{len(self._rules)}".upper(), body)

    def _add(self, name: str, body: str) -> str:
        if len(self._rules) >= MAX_RULES:
            raise GrammarError(f"the schema makes more than {MAX_RULES} rules")
        self._rules[name] = body
        return name

    def cases(self, schema: Schema) -> list[Case]:
        """The alternatives of a schema."""
        return schema_cases(schema, self.reader.definitions)

    def value(self, schema: Schema, not_texts: tuple[str, ...] = ()) -> str:
        """The name of a rule for the values of a schema in the reader's subset.

        Arguments:
            not_texts: patterns that the value, where it is a string, does not match as a whole.

        Raises:
            GrammarError: there are none, or they cannot be written; the message names the keyword.
        """
        key = json.dumps(schema), not_texts
        if key in self._names:
            return self._names[key]
        before = dict(self._names), dict(self._rules)
        name = self._names[key] = self.rule("")  # known before it is complete: a schema may hold itself
        try:
            options = self._options(schema, not_texts)
        except GrammarError:
            self._names, self._rules = before
            raise
        self._rules[name] = union(options)
        return name

    def _options(self, schema: Schema, not_texts: tuple[str, ...]) -> list[str]:
        try:
            options = [option for case in self.cases(schema) for option in self._case(case, not_texts)]
        except GrammarError:
            if not self._notation.takes_json or not_texts:
                raise
            return [compact_json(self.reader, schema)]
        if not options:
            raise GrammarError("the schema accepts no value that can be written in this model's format of calls")
        return options

    def _case(self, case: Case, not_texts: tuple[str, ...]) -> list[str]:
        constants = case.constants()
        if constants is not None:
            read = [value for value in constants if not (isinstance(value, str) and _matches(value, not_texts))]
            return [option for value in read for option in self._constant(value)]
        options: list[str] = []
        for kind in case.types:
            match kind:
                case "null":
                    options += map(lark.quoted, self._notation.words["null"])
                case "boolean":
                    options += map(lark.quoted, (*self._notation.words["true"], *self._notation.words["false"]))
                case "integer" | "number":
                    options.append(self._number(case, kind))
                case "string":
                    options += self._string(case, not_texts)
                case "array":
                    options += self._array(case)
                case "object":
                    options += self._object(case)
        return options

    def _number(self, case: Case, kind: str) -> str:
        """An expression for numbers, or whole numbers, as JSON has them."""
        if case.bounds_numbers:
            return compact_json(self.reader, case.schema(kind))
        return self.terminal(f"/{NUMBERS[kind]}/")

    def _constant(self, value: Json) -> list[str]:
        words = {None: "null", True: "true", False: "false"}
        if value is None or isinstance(value, bool):
            return [lark.quoted(word) for word in self._notation.words[words[value]]]
        if isinstance(value, str):
            return self._spellings(value, self._notation.strings, "the constant")
        if isinstance(value, list):
            items = [union(self._constant(item)) for item in value]
            return [f'"[" {f" {self.comma} ".join(f"({item})" for item in items)} "]"']
        if isinstance(value, dict):
            written = [
                f"({self._name(name)}) {self._colon} ({union(self._constant(item))})" for name, item in value.items()
            ]
            return ['"{" ' + f" {self.comma} ".join(written) + ' "}"']
        return [lark.quoted(json.dumps(value))]

    def _spellings(self, text: str, quotes: Sequence[Quotes], what: str) -> list[str]:
        """Expressions for one text, between any quotes that it needs no escapes in, else as JSON."""
        held = any(mark in text for mark in self._notation.forbidden)
        plain = [it for it in quotes if re.fullmatch(f"{it.plain}{{{it.least},}}", text) and not held]
        if it_fits := [it for it in plain if not it.opening or it.opening not in text]:
            return [self._marked(f"{it.opening}{text}{it.closing}") for it in it_fits]
        written = json.dumps(text, ensure_ascii=False)
        if not any(it.opening == '"' for it in quotes) or any(mark in written for mark in self._notation.forbidden):
            raise GrammarError(f"{what} {shown(text)} cannot be written in this model's format of calls")
        return [self._marked(written)]

    def _name(self, name: str) -> str:
        return union(self._spellings(name, self._notation.names, "the property"))

    def _string(self, case: Case, not_texts: tuple[str, ...]) -> list[str]:
        least, most = case.bounds("Length")
        free = case.is_plain_text and not not_texts
        options = []
        for quotes in self._notation.strings:
            if free:
                character = f"(?:{quotes.plain}|{quotes.escapes})" if quotes.escapes else quotes.plain
                patterns = [f"{character}{{{least},{'' if most is None else most}}}"]
            else:
                patterns = [f"{quotes.plain}*", *case.texts()]
            options.append(self.text_between(quotes, patterns, not_texts))
        if not free and self._notation.takes_json and not not_texts:
            options.append(compact_json(self.reader, case.schema("string")))
        return options

    def text_between(self, quotes: Quotes, patterns: Sequence[str], not_texts: Sequence[str] = ()) -> str:
        """An expression for text between quotes, which matches all of these patterns and none of the others."""
        conditions = [f"/{_slashed(pattern)}/" for pattern in patterns]
        conditions += [f"~/{_slashed(pattern)}/" for pattern in not_texts]
        if self._notation.forbidden:
            held = "|".join(map(literal, self._notation.forbidden))
            conditions.append(f"~/(?s:.*)(?:{held})(?s:.*)/")
        if any(condition.startswith("~") for condition in conditions):
            conditions.append("/(?s:.*)/")  # an opposite alone may be no text at all
        body = self.terminal(" & ".join(conditions))
        return lark.around(quotes.opening, body, quotes.closing, self._control_tokens, self.terminal)

    def _array(self, case: Case) -> list[str]:
        first, rest = case.items()
        least, most = case.bounds("Items")
        if False in first:
            first, rest = first[: first.index(False)], False
        if rest is False:
            most = len(first) if most is None else min(most, len(first))
        if most is not None:
            if least > most:
                return []
            first, rest = first[:most], rest if most > len(first) else False
        item = self.value(rest) if rest is not False else ""
        firsts = [self.value(schema) for schema in first]
        count = len(firsts)
        if item and not firsts:
            more = f"({self.comma} {item}){{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
            body = f"({item} {more}){'' if least else '?'}"
        else:
            body = ""
            if item:
                body = f"({self.comma} {item}){{{max(least - count, 0)},{'' if most is None else most - count}}}"
            for index in reversed(range(count)):
                comma = self.comma if index else ""
                body = f"({comma} {firsts[index]} {body}){'?' if index >= least else ''}"
        return [f'"[" {body} "]"']

    def _object(self, case: Case) -> list[str]:
        members = case.members()
        return [] if members is None else [self.members(members)]

    def members(self, members: Members, value: Callable[[str | None, Schema], str] | None = None) -> str:
        """An expression for an object with these members.

        Arguments:
            value: a rule for the value of the member of this name, or of one that is not named; :meth:`value` by
                default.
        """
        of = value or (lambda name, schema: self.value(schema))
        written = {
            name: f"({self._name(name)}) {self._colon} {of(name, schema)}"
            for name, schema in members.properties.items()
            if schema is not False
        }
        other = None
        if members.others is not False:
            names = not_named(members)
            keys = [self.text_between(it, [f"{it.plain}{{{it.least},}}"], names) for it in self._notation.names]
            other = f"({union(keys)}) {self._colon} {of(None, members.others)}"
        return f'"{{" {self.in_any_order(written, members.required, other, self.comma)} "}}"'

    def in_any_order(
        self, written: Mapping[str, str], required: frozenset[str], other: str | None, separator: str
    ) -> str:
        """The name of a rule for members, each of these once at most and any number of others.

        Arguments:
            written: expressions for members by their names.
            required: names of those that have to be there.
        """
        if len(written) > MAX_MEMBERS:
            raise GrammarError(
                f"an object of {len(written)} properties is not supported in this model's format of calls; the limit "
                f"is {MAX_MEMBERS}"
            )
        ordered = sorted(written, key=lambda name: name not in required)  # stable
        count = len(required)
        rest = self.rule("")
        name = f"{self._prefix}_{len(self._rules)}"
        first = [] if required else ['""']
        more = [f'"" %if is_ones([0:{count}])' if required else '""']
        for bit, member in enumerate(ordered):
            first.append(f"{written[member]} {rest}::{hex(1 << bit)}")
            more.append(f"{separator} {written[member]} {rest}::set_bit({bit}) %if bit_clear({bit})")
        if other is not None:
            first.append(f"{other} {rest}::0x0")
            more.append(f"{separator} {other} {rest}::_")
        del self._rules[rest]
        self._rules[f"{rest}::_"] = "\n  | ".join(more)
        return self._add(name, "\n  | ".join(first))

    def _marked(self, text: str) -> str:
        return lark.marked(text, self._control_tokens)


def not_named(members: Members) -> list[str]:
    """Patterns of the names that are not those of other members."""
    return ["|".join(map(literal, members.properties))] if members.properties else []


def _matches(text: str, patterns: Sequence[str]) -> bool:
    """Whether one of these patterns, of those in ``not_texts``, matches the whole text."""
    return any(re.fullmatch(pattern, text) for pattern in patterns)


def union(options: Sequence[str]) -> str:
    """An expression for any of these."""
    return " | ".join(dict.fromkeys(options))


def compact_json(reader: SchemaReader, schema: Schema) -> str:
    """An expression of JSON that validates against a schema in the reader's subset, without whitespace but for some
    after separators. Other expressions may stand beside it, as they may not beside JSON with whitespace of its own."""
    options: dict[str, Json] = {"whitespace_flexible": False, "item_separator": _SEPARATOR, "key_separator": _COLON}
    options["json_allowed_escapes"] = 'nrbtf\\"' if reader.needs_plain_names(schema) else 'nrbtf\\"u'
    content: dict[str, Json] = schema if isinstance(schema, dict) else {}
    definitions = {"$defs": reader.definitions} if '"$ref"' in json.dumps(content) else {}
    return "%json " + json.dumps({"x-guidance": options, **content, **definitions}, ensure_ascii=False)


def _slashed(pattern: str) -> str:
    """The pattern as it stands between slashes."""
    return pattern.replace("/", r"\x{2f}")
