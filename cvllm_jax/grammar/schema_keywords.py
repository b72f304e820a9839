"""What each keyword of JSON Schema becomes in the subset of the constraint engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cvllm_jax.errors import shown
from cvllm_jax.grammar import numbers
from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.formats import FORMATS, UNSUPPORTED_FORMATS
from cvllm_jax.grammar.patterns import literal, rewrite_pattern
from cvllm_jax.grammar.schema_logic import Json, Schema

if TYPE_CHECKING:
    from cvllm_jax.grammar.json_schema import SchemaReader

__all__ = ["read_keywords"]

MAX_COUNT = 1_000_000
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
ANY_ORDER = frozenset(
    {
        "oneOf", "not", "if", "dependencies", "dependentRequired", "dependentSchemas", "propertyNames",
        "unevaluatedItems", "unevaluatedProperties",
    }
)  # fmt: skip
"""Keywords, beside formats of other names than the standard's, whose schemas leave the order of members open."""
REFUSED = frozenset({"$dynamicRef", "$recursiveRef", "contains", "disallow", "divisibleBy", "extends"})


def read_keywords(reader: SchemaReader, node: dict[str, Json], path: str, embedded: bool) -> Schema:
    """The schema object at ``path`` in the engine's subset.

    Arguments:
        embedded: it lies in a schema with an identity of its own, where references mean something else.
    """
    return _Node(reader, node, path, embedded).read()


class _Node:
    """One schema object while it is read."""

    def __init__(self, reader: SchemaReader, node: dict[str, Json], path: str, embedded: bool) -> None:
        self.reader = reader
        self.node = node
        self.path = path
        self.embedded = embedded
        self.out: dict[str, Any] = {}
        self.also: list[Schema] = []

    def read(self) -> Schema:
        for key, value in self.node.items():
            handler = _HANDLERS.get(key)
            if key in ANY_ORDER:
                self.reader.any_order = key
            if handler is not None:
                handler(self, key, value)
            elif key in REFUSED:
                raise self.refusal(key)
            # Any other name is an annotation, or belongs to one that has a handler.
        self.check_minimum()
        also = [schema for schema in self.also if schema not in (True, {})]
        if also:
            self.out["allOf"] = [*self.out.get("allOf", []), *also]
        return self.out

    def refusal(self, key: str, why: str = "") -> GrammarError:
        return GrammarError(f"the schema keyword {key} at {self.path} is not supported{why and ': ' + why}")

    def invalid(self, key: str, must: str) -> GrammarError:
        return GrammarError(f"{key} at {self.path} must be {must}, not {shown(self.node[key])}")

    def sub(self, value: Json, *steps: object) -> Schema:
        return self.reader.schema(value, "/".join([self.path, *map(str, steps)]), self.embedded)

    def subs(self, key: str, value: Json) -> list[Schema]:
        if not isinstance(value, list) or not value:
            raise self.invalid(key, "a list of schemas")
        return [self.sub(item, key, index) for index, item in enumerate(value)]

    def members(self, key: str, value: Json) -> dict[str, Json]:
        if not isinstance(value, dict):
            raise self.invalid(key, "an object")
        return value

    def names(self, key: str, value: Json) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.invalid(key, "a list of names")
        for name in value:
            self.reader.text(name)
        return list(dict.fromkeys(value))

    # Values

    def read_type(self, key: str, value: Json) -> None:
        types = value if isinstance(value, list) else [value]
        if not types or any(item not in TYPES for item in types):
            raise self.invalid(key, f"one or more of {', '.join(TYPES)}")
        self.out["type"] = value

    def read_values(self, key: str, value: Json) -> None:
        if key == "enum" and not (isinstance(value, list) and value):
            raise self.invalid(key, "a list of values")
        self.constant(key, value)
        self.out[key] = value

    def constant(self, key: str, value: Json) -> None:
        if isinstance(value, str):
            self.reader.text(value)
        elif isinstance(value, list):
            for item in value:
                self.constant(key, item)
        elif isinstance(value, dict):
            for name, item in value.items():
                self.reader.text(name)
                self.constant(key, item)
        elif not numbers.exact(value):
            raise self.refusal(key, f"{shown(value)} is no exact binary number")

    # Numbers

    def read_bound(self, key: str, value: Json) -> None:
        if isinstance(value, bool) and key.startswith("exclusive"):
            return  # draft 4: it makes the other bound exclusive, which is read there
        if not numbers.is_number(value):
            raise self.invalid(key, "a number")
        exclusive = key.startswith("exclusive") or self.node.get(f"exclusive{key.capitalize()}") is True
        lower = key.lower().endswith("minimum")
        types = self.node.get("type", "number")
        integer = "number" not in (types if isinstance(types, list) else [types])
        bound = numbers.inward(value, lower=lower, exclusive=exclusive, integer=integer)
        if bound is None:
            raise self.refusal(key, f"{shown(value)} is too large or too small a bound")
        self.also.append({"minimum" if lower else "maximum": bound})

    def read_multiple(self, key: str, value: Json) -> None:
        if not numbers.is_number(value) or value <= 0:
            raise self.invalid(key, "a number above 0")
        if not self.reader.multiples.add(value):
            raise self.refusal(key, f"{shown(value)} is no whole number within {numbers.MAX_MULTIPLE}")
        self.out[key] = int(value)

    # Strings and counts

    def read_count(self, key: str, value: Json) -> None:
        if not numbers.is_number(value) or value < 0 or value != int(value):
            raise self.invalid(key, "a whole number from 0 up")
        if value > MAX_COUNT:
            if key.startswith("max"):
                return  # no answer is that long
            raise self.refusal(key, f"the limit is {MAX_COUNT}")
        self.out[key] = int(value)

    def read_pattern(self, key: str, value: Json) -> None:
        if not isinstance(value, str):
            raise self.invalid(key, "a string")
        self.out[key] = rewrite_pattern(value)

    def read_format(self, key: str, value: Json) -> None:
        if not isinstance(value, str):
            raise self.invalid(key, "a string")
        if value in UNSUPPORTED_FORMATS:
            raise self.refusal(f"format {value!r}")
        if value not in FORMATS:
            self.reader.any_order = f"format {value!r}"
        self.also.append(FORMATS.get(value, True))

    # Arrays

    def read_items(self, key: str, value: Json) -> None:
        if isinstance(value, list):
            self.out["prefixItems"] = [self.sub(item, key, index) for index, item in enumerate(value)]
            self.out["items"] = self.sub(self.node.get("additionalItems", True), "additionalItems")
        elif self.reader.draft < 2020 and "prefixItems" in self.node:
            raise self.refusal("prefixItems", "it belongs to draft 2020-12")
        else:
            self.out["items"] = self.sub(value, key)

    def read_prefix(self, key: str, value: Json) -> None:
        self.out[key] = self.subs(key, value)

    def read_unique(self, key: str, value: Json) -> None:
        if not isinstance(value, bool):
            raise self.invalid(key, "true or false")
        most = self.node.get("maxItems")
        if value and not (numbers.is_number(most) and most <= 1):
            raise self.refusal(key)

    def read_unevaluated(self, key: str, value: Json) -> None:
        if value is True or value == {}:
            return
        beside = {"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "dependencies", "not"}
        direct = "additionalProperties" if key == "unevaluatedProperties" else "items"
        if direct == "additionalProperties":
            beside.add("propertyNames")
        if beside & self.node.keys() or (direct == "items" and isinstance(self.node.get("items"), list)):
            raise self.refusal(key, "beside other schemas")
        if direct not in self.node:  # else nothing is left unevaluated
            self.out[direct] = self.sub(value, key)

    # Objects

    def read_properties(self, key: str, value: Json) -> None:
        for name in self.members(key, value):
            self.reader.text(name)
        self.out[key] = {name: self.sub(item, key, name) for name, item in value.items()}

    def read_pattern_properties(self, key: str, value: Json) -> None:
        self.out[key] = {
            rewrite_pattern(name): self.sub(item, key, name) for name, item in self.members(key, value).items()
        }

    def read_schema(self, key: str, value: Json) -> None:
        self.out[key] = self.sub(value, key)

    def read_required(self, key: str, value: Json) -> None:
        self.out[key] = self.names(key, value)

    def read_dependencies(self, key: str, value: Json) -> None:
        for name, item in self.members(key, value).items():
            self.reader.text(name)
            if key != "dependentSchemas" and isinstance(item, list):
                present: Schema = {"required": self.names(key, item)}
            elif key != "dependentRequired":
                present = self.sub(item, key, name)
            else:
                raise self.invalid(key, "an object of lists of names")
            self.also.append({"anyOf": [{"properties": {name: False}}, present]})

    def read_property_names(self, key: str, value: Json) -> None:
        names = self.sub(value, key)
        if names in (True, {}):
            return
        pattern = _names_pattern(names)
        if pattern is None or {"properties", "patternProperties", "required"} & self.node.keys():
            raise self.refusal(key)
        self.out["patternProperties"] = {pattern: self.sub(self.node.get("additionalProperties", True), key)}
        self.out["additionalProperties"] = False

    def read_additional(self, key: str, value: Json) -> None:
        if self.node.get("propertyNames", True) in (True, {}) and value not in (True, {}):
            self.out[key] = self.sub(value, key)

    def check_minimum(self) -> None:
        # A name that is not in the schema may come twice, and then counts once.
        others = self.out.get("patternProperties") or self.out.get("additionalProperties") is not False
        if others and self.out.get("minProperties", 0) > len(self.out.get("required", ())) + 1:
            raise self.refusal("minProperties", "more than one beyond those that are required")
        # The engine counts members only where all that have a name are required.
        optional = self.out.get("properties", {}).keys() - self.out.get("required", ())
        if optional and self.out.get("minProperties", 0) > (0 if others else 1):
            self.reader.any_order = "minProperties"
        elif optional and not others and self.out.get("maxProperties", 0) > 1:
            self.reader.any_order = "maxProperties"

    # Combinations

    def read_all(self, key: str, value: Json) -> None:
        self.out[key] = self.subs(key, value)

    def read_any(self, key: str, value: Json) -> None:
        self.out[key] = self.subs(key, value)

    def read_one(self, key: str, value: Json) -> None:
        exactly_one = self.reader.logic.exactly_one(self.subs(key, value))
        if exactly_one is None:
            raise self.refusal(key, "its schemas may hold at once, and their opposites cannot be expressed")
        self.also.append(exactly_one)

    def read_not(self, key: str, value: Json) -> None:
        opposite = self.reader.logic.opposite(self.sub(value, key))
        if opposite is None:
            raise self.refusal(key, "the opposite of its schema cannot be expressed")
        self.also.append(opposite)

    def read_if(self, key: str, value: Json) -> None:
        then, otherwise = (
            self.sub(self.node[name], name) if name in self.node else True for name in ("then", "else")
        )
        if then is True and otherwise is True:
            return
        condition = self.sub(value, key)
        opposite = self.reader.logic.opposite(condition)
        if opposite is None:
            raise self.refusal(key, "the opposite of its schema cannot be expressed")
        self.also.append({"anyOf": [{"allOf": [condition, then]}, {"allOf": [opposite, otherwise]}]})

    def read_reference(self, key: str, value: Json) -> None:
        target = self.reader.reference(value, self.path, self.embedded)
        if isinstance(target, dict) and len(target) == 1:
            self.out |= target
        else:
            self.also.append(target)


def _names_pattern(schema: Schema) -> str | None:
    """The pattern that ``propertyNames`` comes to, if it is one."""
    if not isinstance(schema, dict):
        return None
    match {key: value for key, value in schema.items() if (key, value) != ("type", "string")}:
        case {"pattern": str(pattern), **rest} if not rest:
            return pattern
        case {"enum": list(values), **rest} if not rest and all(isinstance(value, str) for value in values):
            return f"^(?:{'|'.join(map(literal, values))})$"
        case {"const": str(value), **rest} if not rest:
            return f"^{literal(value)}$"
        case lengths if lengths and not lengths.keys() - {"minLength", "maxLength"}:
            return f"^(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})$"
    return None


_HANDLERS: dict[str, Callable[[_Node, str, Json], None]] = {
    "type": _Node.read_type,
    "enum": _Node.read_values,
    "const": _Node.read_values,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _Node.read_bound),
    "multipleOf": _Node.read_multiple,
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _Node.read_count
    ),
    "pattern": _Node.read_pattern,
    "format": _Node.read_format,
    "items": _Node.read_items,
    "prefixItems": _Node.read_prefix,
    "uniqueItems": _Node.read_unique,
    **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties"), _Node.read_unevaluated),
    "properties": _Node.read_properties,
    "patternProperties": _Node.read_pattern_properties,
    "additionalProperties": _Node.read_additional,
    "propertyNames": _Node.read_property_names,
    "required": _Node.read_required,
    **dict.fromkeys(("dependencies", "dependentRequired", "dependentSchemas"), _Node.read_dependencies),
    "allOf": _Node.read_all,
    "anyOf": _Node.read_any,
    "oneOf": _Node.read_one,
    "not": _Node.read_not,
    "if": _Node.read_if,
    "$ref": _Node.read_reference,
}
