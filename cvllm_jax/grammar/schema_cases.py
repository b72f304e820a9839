"""Schemas taken apart: alternatives, each of keywords that all hold and refer to nothing.

For grammars of values in other notations than JSON, which the constraint engine has no rules for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cvllm_jax.errors import shown
from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.formats import FORMAT_TEXTS
from cvllm_jax.grammar.schema_logic import Json, Schema
from cvllm_jax.grammar.whole_text import whole_text

__all__ = ["Case", "Members", "all_of", "schema_cases"]

MAX_CASES = 64
MAX_DEPTH = 60

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_ANY = frozenset(TYPES)
_VALUES = frozenset({"const", "enum"})
_NUMBERS = frozenset({"minimum", "maximum", "multipleOf"})
_TEXTS = frozenset({"minLength", "maxLength", "pattern", "format"})
_ARRAYS = frozenset({"items", "prefixItems", "minItems", "maxItems"})
_OBJECTS = frozenset(
    {"properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"}
)
_KNOWN = _VALUES | _NUMBERS | _TEXTS | _ARRAYS | _OBJECTS | {"type"}


@dataclass(frozen=True, slots=True)
class Members:
    """What the members of an object have to be."""

    properties: dict[str, Schema]
    """By name, in the order of the schemas; False where the member must not be there."""
    required: frozenset[str]
    others: Schema
    """For members of other names."""


@dataclass(frozen=True, slots=True)
class Case:
    """Keywords that all hold, each part without combinations and references."""

    parts: tuple[dict[str, Any], ...]

    @property
    def types(self) -> list[str]:
        """The types that values may have: ``integer`` only where not every number will do."""
        left = set(_ANY)
        for part in self.parts:
            if "type" in part:
                declared = {part["type"]} if isinstance(part["type"], str) else set(part["type"])
                left &= declared | ({"integer"} if "number" in declared else set())
        return [name for name in TYPES if name in left and not (name == "integer" and "number" in left)]

    def schema(self, kind: str) -> dict[str, Any]:
        """A schema of the values of this type."""
        return {"type": kind, "allOf": list(self.parts)} if self.parts else {"type": kind}

    def constants(self) -> list[Json] | None:
        """The only values there are; None where there are others.

        Raises:
            GrammarError: a constant stands beside what cannot be checked here.
        """
        lists = [[part["const"]] if "const" in part else part["enum"] for part in self.parts if part.keys() & _VALUES]
        lists += [part["enum"] for part in self.parts if part.keys() >= _VALUES]
        if not lists:
            return None
        found: list[Json] = []
        for value in lists[0]:
            everywhere = all(any(_same(value, other) for other in others) for others in lists[1:])
            known = any(_same(value, other) for other in found)
            if everywhere and not known and self.has_type(value) and all(_fits(value, part) for part in self.parts):
                found.append(value)
        return found

    def has_type(self, value: Json) -> bool:
        """Whether a value is of one of the types."""
        kind = _type_of(value)
        return kind in self.types or (kind == "integer" and "number" in self.types)

    def texts(self) -> list[str]:
        """Patterns that each string must match as a whole, constants left aside. Empty: any string will do.

        Raises:
            GrammarError: a pattern has an anchor where it cannot be followed, or a format is not known.
        """
        least, most = self.bounds("Length")
        found = [f"(?s:.{{{least},{'' if most is None else most}}})"] if least or most is not None else []
        found += [whole_text(part["pattern"]) for part in self.parts if "pattern" in part]
        formats = [part["format"] for part in self.parts if "format" in part]
        if unknown := [name for name in formats if name not in FORMAT_TEXTS]:
            raise _unsupported(f"format {unknown[0]!r}")
        return found + [FORMAT_TEXTS[name] for name in formats]

    def bounds(self, counted: str) -> tuple[int, int | None]:
        """The least and the most that ``minLength``, ``maxItems`` and the like allow."""
        least = max((part.get(f"min{counted}", 0) for part in self.parts), default=0)
        most = min((part.get(f"max{counted}", math.inf) for part in self.parts), default=math.inf)
        return least, None if most == math.inf else int(most)

    @property
    def is_plain_text(self) -> bool:
        """Whether strings have no other bounds than their lengths."""
        return not any(part.keys() & {"pattern", "format"} for part in self.parts)

    @property
    def bounds_numbers(self) -> bool:
        """Whether not every number will do."""
        return any(part.keys() & _NUMBERS for part in self.parts)

    def items(self) -> tuple[list[Schema], Schema]:
        """What the first items of an array have to be, one after the other, and what the rest."""
        count = max((len(part.get("prefixItems", ())) for part in self.parts), default=0)
        first = [all_of(*(_item(part, index) for part in self.parts)) for index in range(count)]
        return first, all_of(*(part.get("items", True) for part in self.parts))

    def members(self) -> Members | None:
        """What the members of an object have to be; None where there is no such object.

        Raises:
            GrammarError: it depends on more than their names.
        """
        names = [name for part in self.parts for name in (*part.get("properties", ()), *part.get("required", ()))]
        required = frozenset(name for part in self.parts for name in part.get("required", ()))
        others = all_of(*(part.get("additionalProperties", True) for part in self.parts))
        properties = {
            name: all_of(*(_member(part, name) for part in self.parts)) for name in dict.fromkeys(names)
        }
        least, most = self.bounds("Properties")
        possible = sum(schema is not False for schema in properties.values())
        if any(part.get("patternProperties") for part in self.parts):
            raise _unsupported("patternProperties")
        if least > len(required):
            raise _unsupported("minProperties")
        if most is not None and (others is not False or most < possible):
            raise _unsupported("maxProperties")
        if any(properties[name] is False for name in required):
            return None
        return Members(properties, required, others)


def schema_cases(schema: Schema, definitions: dict[str, Schema]) -> list[Case]:
    """The alternatives of a schema in the subset of :class:`SchemaReader`; none where it accepts no value.

    Raises:
        GrammarError: there are too many, or the schema has a keyword that is not known here.
    """
    return [Case(tuple(parts)) for parts in _cases(schema, definitions, 0)]


def all_of(*schemas: Schema) -> Schema:
    """A schema for what all of these accept."""
    if any(schema is False for schema in schemas):
        return False
    given: list[dict[str, Any]] = []
    for schema in schemas:
        if isinstance(schema, dict) and schema and schema not in given:
            given.append(schema)
    return {"allOf": given} if len(given) > 1 else given[0] if given else True


def _cases(schema: Schema, definitions: dict[str, Schema], depth: int) -> list[list[dict[str, Any]]]:
    if isinstance(schema, bool):
        return [[]] if schema else []
    if depth > MAX_DEPTH:
        raise GrammarError(f"the schema is nested more than {MAX_DEPTH} deep")
    plain = {key: value for key, value in schema.items() if key not in ("allOf", "anyOf", "$ref")}
    if unknown := plain.keys() - _KNOWN:
        raise _unsupported(min(unknown))
    found = [[plain]] if plain else [[]]
    together = list(schema.get("allOf", ()))
    if "$ref" in schema:
        together.append(definitions[schema["$ref"].removeprefix("#/$defs/")])
    for part in together:
        found = _product(found, _cases(part, definitions, depth + 1))
    if "anyOf" in schema:
        options = [case for option in schema["anyOf"] for case in _cases(option, definitions, depth + 1)]
        found = _product(found, options)
    return found


def _product(one: list[list[dict[str, Any]]], other: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    if len(one) * len(other) > MAX_CASES:
        raise GrammarError(f"the schema has more than {MAX_CASES} alternatives once combined")
    return [[*left, *(part for part in right if part not in left)] for left in one for right in other]


def _unsupported(key: str) -> GrammarError:
    return GrammarError(f"the schema keyword {key} is not supported in this model's format of calls")


def _item(part: dict[str, Any], index: int) -> Schema:
    first = part.get("prefixItems", ())
    found: Schema = first[index] if index < len(first) else part.get("items", True)
    return found


def _member(part: dict[str, Any], name: str) -> Schema:
    properties = part.get("properties", {})
    found: Schema = properties[name] if name in properties else part.get("additionalProperties", True)
    return found


def _type_of(value: Json) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}[type(value)]


def _same(one: Json, other: Json) -> bool:
    """JSON's equality: true is not 1."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _fits(value: Json, part: dict[str, Any]) -> bool:
    """Whether a constant keeps to the bounds beside it."""
    kind = _type_of(value)
    if kind in ("integer", "number"):
        low, high = part.get("minimum", -math.inf), part.get("maximum", math.inf)
        return bool(low <= value <= high) and not ("multipleOf" in part and value % part["multipleOf"])
    if kind == "string":
        beside = part.keys() & {"pattern", "format"}
        fits = bool(part.get("minLength", 0) <= len(value) <= part.get("maxLength", math.inf))
    else:
        beside = part.keys() & {"array": _ARRAYS, "object": _OBJECTS}.get(kind, frozenset())
        fits = True
    if beside:
        raise GrammarError(f"the constant {shown(value)} beside {min(beside)} is not supported in calls of this format")
    return fits

