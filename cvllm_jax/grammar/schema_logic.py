"""Opposites and overlaps of schemas, in the subset that the constraint engine knows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

from cvllm_jax.grammar import numbers
from cvllm_jax.grammar.patterns import not_any_of

__all__ = ["MAX_ALTERNATIVES", "Json", "Part", "Schema", "SchemaLogic"]

MAX_OPTIONS = 128
MAX_ALTERNATIVES = 256
MAX_DEPTH = 12
MAX_STEPS = 50_000
_NOT_INTEGER = frozenset({"null", "boolean", "string", "array", "object"})
_TYPES = _NOT_INTEGER | {"number"}
_TYPE_OF = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}

type Json = Any
type Schema = dict[str, Any] | bool
type Part = dict[str, Any]
"""A schema that combines no others."""


class SchemaLogic:
    """Decides by the text of schemas; what it cannot decide it says so of, and never guesses.

    Arguments:
        definitions: what ``#/$defs/NAME`` refers to. One that refers to itself is not read yet.
    """

    def __init__(self, definitions: dict[str, Schema]) -> None:
        self._definitions = definitions
        self._steps = 0

    def exactly_one(self, options: list[Schema]) -> Schema | None:
        """A schema for what exactly one of these accepts; None if that cannot be expressed."""
        options = [option for option in options if option is not False]
        overlaps: list[list[Schema]] = [[] for _ in options]
        for index, option in enumerate(options):
            for other in range(index):
                if not self.disjoint(option, options[other]):
                    overlaps[index].append(options[other])
                    overlaps[other].append(option)
        chosen: list[Schema] = []
        size = 0
        for option, others in zip(options, overlaps):
            opposites = [self.opposite(other) for other in others]
            product = 1
            for opposite in opposites:
                if opposite is None:
                    return None
                product *= len(opposite["anyOf"]) if isinstance(opposite, dict) and "anyOf" in opposite else 1
            size += product
            if size > MAX_OPTIONS:
                return None
            if False not in opposites:
                chosen.append({"allOf": [option, *opposites]} if opposites else option)
        return {"anyOf": chosen} if chosen else False

    def opposite(self, schema: Schema, depth: int = 0) -> Schema | None:
        """A schema for exactly what this one rejects; None if that cannot be expressed."""
        if isinstance(schema, bool):
            return not schema
        if depth > MAX_DEPTH or self._exhausted():
            return None
        options: list[Schema] = []
        for key, value in schema.items():
            opposites = self._opposites(key, value, depth + 1)
            if opposites is None:
                return None
            options += [option for option in opposites if option is not False]
        if True in options:
            return True
        return {"anyOf": options} if len(options) > 1 else options[0] if options else False

    def _opposites(self, key: str, value: Any, depth: int) -> list[Schema] | None:
        """Schemas of which what one keyword rejects satisfies one or more; None if they cannot be expressed."""
        match key:
            case "type":
                types = {value} if isinstance(value, str) else set(value)
                if "integer" in types and "number" not in types:
                    return None
                return [{"type": sorted(_TYPES - types)}] if _TYPES - types else []
            case "required":
                return [{"type": "object", "properties": {name: False}} for name in value]
            case "properties":
                inner = {name: self.opposite(item, depth) for name, item in value.items()}
                if None in inner.values():
                    return None
                return [
                    {"type": "object", "properties": {name: item}, "required": [name]}
                    for name, item in inner.items()
                    if item is not False
                ]
            case "minimum" | "maximum":
                other = "maximum" if key == "minimum" else "minimum"
                bound = numbers.beyond(value, lower=key == "minimum")
                return None if bound is None else [{"type": "number", other: bound}]
            case "minLength" | "minItems":
                return [{"type": _counted(key), f"max{key[3:]}": value - 1}] if value else []
            case "maxLength" | "maxItems":
                return [{"type": _counted(key), f"min{key[3:]}": value + 1}]
            case "const":
                return _other_values([value])
            case "enum":
                return _other_values(value)
            case "allOf":
                parts = [self.opposite(item, depth) for item in value]
                return None if None in parts else [part for part in parts if part is not None]
            case "anyOf":
                parts = [self.opposite(item, depth) for item in value]
                return None if None in parts else [{"allOf": parts}]
            case "$ref":
                target = self._target(value)
                opposite = None if target is None else self.opposite(target, depth)
                return None if opposite is None else [opposite]
        return None

    def disjoint(self, left: Schema, right: Schema, depth: int = 0) -> bool:
        """Whether it is certain that no value satisfies both."""
        if left is False or right is False:
            return True
        if left is True or right is True or depth > MAX_DEPTH or self._exhausted():
            return False
        for one, other in ((left, right), (right, left)):
            if "anyOf" in one and all(self.disjoint(option, other, depth + 1) for option in one["anyOf"]):
                return True
        lefts, rights = list(self._conjuncts(left, depth)), list(self._conjuncts(right, depth))
        common = self.kinds(lefts + rights)
        if not common:
            return True
        if any(_values_apart(one, other) for one in lefts for other in rights):
            return True
        if common == {"object"} and self._objects_apart(lefts, rights, depth):
            return True
        nested = [(one, other) for one in lefts for other in rights if one is not left or other is not right]
        return any(
            ("anyOf" in one or "anyOf" in other) and self.disjoint(one, other, depth + 1) for one, other in nested
        )

    def _objects_apart(self, lefts: list[dict[str, Any]], rights: list[dict[str, Any]], depth: int) -> bool:
        required = {name for part in lefts + rights for name in part.get("required", ())}
        for name in required:
            ours = [_property(part, name) for part in lefts]
            theirs = [_property(part, name) for part in rights]
            if any(self.disjoint(one, other, depth + 1) for one in ours for other in theirs):
                return True
        return False

    def _conjuncts(self, schema: Schema, depth: int) -> Iterator[dict[str, Any]]:
        """The schema and all that has to hold with it."""
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            return
        yield schema
        for item in schema.get("allOf", ()):
            yield from self._conjuncts(item, depth + 1)
        if "$ref" in schema:
            target = self._target(schema["$ref"])
            if target is not None:
                yield from self._conjuncts(target, depth + 1)

    def kinds(self, parts: Iterable[dict[str, Any]]) -> set[str]:
        """The types, of which ``number`` has the integers, that these leave, read without what they combine."""
        common = set(_TYPES)
        for part in parts:
            if "type" in part:
                types = {part["type"]} if isinstance(part["type"], str) else set(part["type"])
                common &= {"number" if name == "integer" else name for name in types}
            for values in _values(part):
                common &= {_TYPE_OF.get(type(value), "null") for value in values}
        return common

    def alternatives(self, schema: Schema, following: frozenset[str] = frozenset()) -> list[tuple[Part, ...]] | None:
        """What the schema comes to, each time schemas that hold at once; None if there are too many.

        Those that no type of value satisfies are left out.

        Arguments:
            following: references that led here.
        """
        if isinstance(schema, bool):
            return [()] if schema else []
        own = {key: item for key, item in schema.items() if key not in ("allOf", "anyOf", "$ref")}
        groups: list[list[Schema]] = [[item] for item in schema.get("allOf", ())]
        if "anyOf" in schema:
            groups.append(schema["anyOf"])
        if "$ref" in schema:
            if schema["$ref"] in following:
                return []  # a value that is one by way of itself is one without as well
            following |= {schema["$ref"]}
            groups.append([self._definitions[schema["$ref"].removeprefix("#/$defs/")]])
        found: list[tuple[Part, ...]] = [(own,)] if own else [()]
        for group in groups:
            options: list[tuple[Part, ...]] = []
            for item in group:
                more = self.alternatives(item, following)
                if more is None or len(options) + len(more) > MAX_ALTERNATIVES:
                    return None
                options += more
            if len(found) * len(options) > 8 * MAX_ALTERNATIVES:
                return None
            found = [both for one in found for other in options if self.kinds(both := (*one, *other))]
            if len(found) > MAX_ALTERNATIVES:
                return None
        return found

    def _exhausted(self) -> bool:
        self._steps += 1
        return self._steps > MAX_STEPS

    def _target(self, reference: str) -> Schema | None:
        target = self._definitions.get(reference.removeprefix("#/$defs/"))
        return None if isinstance(target, dict) and target.get("$ref") == reference else target


def _counted(key: str) -> str:
    return "string" if key.endswith("Length") else "array"


def _property(part: dict[str, Any], name: str) -> Schema:
    """What a property of an object has to satisfy by this schema alone."""
    properties = part.get("properties", {})
    if name in properties:
        found: Schema = properties[name]
        return found
    if part.get("patternProperties"):
        return True
    rest: Schema = part.get("additionalProperties", True)
    return rest


def _values(part: dict[str, Any]) -> Iterator[list[Any]]:
    if "const" in part:
        yield [part["const"]]
    if "enum" in part:
        yield part["enum"]


def _values_apart(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the constants or bounds of two schemas exclude each other."""
    for ours in _values(one):
        for theirs in _values(other):
            if not any(_equal(left, right) for left in ours for right in theirs):
                return True
    for low, high in ((one, other), (other, one)):
        if _only(low, "number", "integer") and low.get("minimum", -math.inf) > high.get("maximum", math.inf):
            return True
        for kind, counted in (("string", "Length"), ("array", "Items")):
            if _only(low, kind) and low.get(f"min{counted}", 0) > high.get(f"max{counted}", math.inf):
                return True
    return False


def _only(part: dict[str, Any], *types: str) -> bool:
    return part.get("type") in types


def _equal(left: Any, right: Any) -> bool:
    """JSON's equality: true is not 1. What holds other values counts as equal, which is the careful answer."""
    if isinstance(left, (list, dict)) and isinstance(right, (list, dict)):
        return type(left) is type(right)
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _other_values(values: list[Any]) -> list[Schema] | None:
    """Schemas for every value but these."""
    texts = [value for value in values if isinstance(value, str)]
    booleans = {value for value in values if isinstance(value, bool)}
    counts = sorted({value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)})
    if any(isinstance(value, (list, dict)) for value in values):
        return None
    rest: set[str] = set(_TYPES)
    options: list[Schema] = []
    if None in values:
        rest.discard("null")
    if booleans:
        rest.discard("boolean")
        options += [{"const": value} for value in (False, True) if value not in booleans]
    if texts:
        rest.discard("string")
        options.append({"type": "string", "pattern": not_any_of(texts)})
    if counts:
        rest.discard("number")
        edges = [(numbers.beyond(count, lower=True), numbers.beyond(count, lower=False)) for count in counts]
        if any(bound is None for edge in edges for bound in edge):
            return None
        options.append({"type": "number", "maximum": edges[0][0]})
        options += [
            {"type": "number", "minimum": low, "maximum": high} for (_, low), (high, _) in itertools.pairwise(edges)
        ]
        options.append({"type": "number", "minimum": edges[-1][1]})
    return [*options, {"type": sorted(rest)}]
