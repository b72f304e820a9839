"""JSON whose objects have their members in any order, as a Lark grammar.

The constraint engine's own reading of a schema gives members one order. Here an object is a rule with a parameter, one
bit for each name that has come. What holds no object with named members stays a schema for the engine to read.

A value is described by the schemas that apply to it at once. They come to alternatives without ``allOf``, ``anyOf``
and ``$ref``, and an object's members are the union of what those of one alternative name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping

from cvllm_jax.grammar.any_order_rules import COUNTED, ArrayRule, ObjectRule, Rule, TextRule
from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.patterns import literal, not_any_of
from cvllm_jax.grammar.schema_logic import MAX_ALTERNATIVES, Json, Part, Schema, SchemaLogic
from cvllm_jax.grammar.whole_text import whole_text

__all__ = ["AnyOrder"]

MAX_RULES = 2000
MAX_READ = 2000
"""Schemas for the engine, each of which is compiled by itself to see whether anything validates."""

_ARRAYS = frozenset({"items", "prefixItems", "minItems", "maxItems"})
_OBJECTS = frozenset(
    {"properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties"}
)
_EVERYWHERE = frozenset({"type", "const", "enum"})
# Types that are read together, and which keywords mean something to them.
_KINDS: tuple[tuple[tuple[str, ...], Callable[[str], bool]], ...] = (
    (("null", "boolean", "number", "string"), lambda key: key not in _ARRAYS | _OBJECTS),
    (("array",), lambda key: key in _ARRAYS | _EVERYWHERE),
    (("object",), lambda key: key in _OBJECTS | _EVERYWHERE),
)


class AnyOrder:
    """Writes rules for schemas of :class:`~cvllm_jax.grammar.json_schema.SchemaReader`.

    Arguments:
        definitions: what ``#/$defs/NAME`` refers to in them.
        logic: decides over the same definitions.
        keyword: why members come in any order; what is refused is refused beside it.
        options: of the engine's own reading of schemas (``x-guidance``).
        complaint: what the engine says of a grammar that it cannot compile, or nothing.
    """

    def __init__(
        self,
        definitions: Mapping[str, Schema],
        logic: SchemaLogic,
        keyword: str,
        options: Mapping[str, Json],
        complaint: Callable[[str], str],
    ) -> None:
        self._definitions = definitions
        self._logic = logic
        self._keyword = keyword
        self._options = options
        self._complaint = complaint
        self._read = 0
        self._matching: dict[tuple[str, str], bool] = {}
        self._names: dict[str, str] = {}
        self._rules: dict[str, list[Rule]] = {}
        self._waiting: list[tuple[str, list[Schema]]] = []
        self._with_names: set[str] = set()
        size = -1
        while size < len(self._with_names):
            size = len(self._with_names)
            self._with_names |= {f"#/$defs/{name}" for name, item in definitions.items() if self._has_names(item)}

    def expression(self, schema: Schema) -> str:
        """An expression, for a Lark grammar, of the JSON that validates against the schema.

        Raises:
            GrammarError: nothing validates, it is too large, or an object's members cannot be kept apart.
        """
        start = self._value([schema])
        while self._waiting:
            name, schemas = self._waiting.pop()
            self._rules[name] = list(self._readings(schemas))
        possible = self._possible()
        if start not in possible:
            raise GrammarError("the schema accepts no value")
        lines = ['%llguidance { "ignore_once": true }', f"%ignore /{self._options['whitespace_pattern']}/"]
        lines.append(f"start: {start}")
        for name in self._reachable(start, possible):
            readings = [reading for reading in self._rules[name] if reading.possible(possible)]
            rules = [reading.written(f"{name}_{index}", possible) for index, reading in enumerate(readings)]
            lines.append(f"{name}: {' | '.join(expression for expression, _ in rules)}")
            lines += [line for _, more in rules for line in more]
        return "%lark {\n" + "\n".join(lines) + "\n}"

    def _refusal(self, what: str) -> GrammarError:
        return GrammarError(f"the schema keyword {self._keyword} is not supported beside {what}")

    # Values

    def _value(self, schemas: Iterable[Schema]) -> str:
        """The name of the rule for what validates against all of these."""
        keys = {json.dumps(schema): schema for schema in schemas if schema not in (True, {})}
        key = " ".join(sorted(keys))
        if key not in self._names:
            if len(self._names) >= MAX_RULES:
                raise self._refusal(f"more than {MAX_RULES} different parts of a schema")
            self._names[key] = f"v{len(self._names)}"
            self._waiting.append((self._names[key], list(keys.values())))
        return self._names[key]

    def _readings(self, schemas: list[Schema]) -> Iterator[Rule]:
        if not self._has_names(schemas):
            yield from self._engine(_both(*schemas))
            return
        seen = set()
        alternatives = self._logic.alternatives({"allOf": schemas})
        if alternatives is None:
            raise self._refusal(f"alternatives that combine in more than {MAX_ALTERNATIVES} ways")
        for alternative in alternatives:
            kinds = self._logic.kinds(alternative)
            for types, means in _KINDS:
                left = [kind for kind in types if kind in kinds]
                parts = [{key: item for key, item in part.items() if means(key)} for part in alternative]
                parts = [part for part in parts if part]
                key = json.dumps([left, parts])
                if left and key not in seen:
                    seen.add(key)
                    yield from self._reading(left, parts)

    def _reading(self, types: list[str], parts: list[Part]) -> Iterator[Rule]:
        """Values of these types that validate against all parts."""
        constant = any("const" in part or "enum" in part for part in parts)
        if constant or not self._has_names(parts):
            yield from self._engine(_both({"type": types}, *parts))
        else:
            yield self._array(parts) if types == ["array"] else self._object(parts)

    def _engine(self, schema: Part) -> Iterator[TextRule]:
        """What the engine makes of the schema; nothing if it says that no value validates."""
        self._read += 1
        if self._read > MAX_READ:
            raise self._refusal(f"more than {MAX_READ} different parts of a schema")
        used: dict[str, Schema] = {}
        self._collect(schema, used)
        whole = {"x-guidance": self._options, **schema, "$defs": used}
        expression = "%json " + json.dumps(whole, ensure_ascii=False)
        complaint = self._complaint(f"start: {expression}")
        if not complaint:
            yield TextRule(expression)
        elif "nsatisfiable" not in complaint:
            raise GrammarError(complaint)

    def _collect(self, node: Json, found: dict[str, Schema]) -> None:
        """The definitions that a schema refers to."""
        if isinstance(node, list):
            for item in node:
                self._collect(item, found)
        elif isinstance(node, dict):
            name = str(node.get("$ref")).removeprefix("#/$defs/")
            if name in self._definitions and name not in found:
                found[name] = self._definitions[name]
                self._collect(found[name], found)
            for key, item in node.items():
                if key not in ("const", "enum"):
                    self._collect(item, found)

    def _has_names(self, node: Json) -> bool:
        """Whether some object in it has members with names."""
        if isinstance(node, list):
            return any(map(self._has_names, node))
        if not isinstance(node, dict):
            return False
        if node.get("properties") or node.get("required") or node.get("$ref") in self._with_names:
            return True
        return any(self._has_names(item) for key, item in node.items() if key not in ("const", "enum"))

    # Arrays and objects

    def _array(self, parts: list[Part]) -> ArrayRule:
        def at(index: int) -> str:
            return self._value(
                part["prefixItems"][index] if index < len(part.get("prefixItems", ())) else part.get("items", True)
                for part in parts
            )

        length = max(len(part.get("prefixItems", ())) for part in parts)
        least, most = _counts(parts, "Items")
        return ArrayRule([at(index) for index in range(length)], at(length), least, most)

    def _object(self, parts: list[Part]) -> ObjectRule:
        required = dict.fromkeys(name for part in parts for name in part.get("required", ()))
        names = required | dict.fromkeys(name for part in parts for name in part.get("properties", ()))
        least, most = _counts(parts, "Properties")
        others = list(self._others(parts, list(names)))
        if len(required) > COUNTED:
            raise self._refusal(f"more than {COUNTED} required properties of an object")
        if most is not None and (others or len(names) > COUNTED):
            raise self._refusal("maxProperties of an object with properties and others")
        if least > len(required) and len(names) > COUNTED:
            raise self._refusal(f"minProperties of an object with more than {COUNTED} properties")
        members = {name: self._value(self._member(parts, name)) for name in names}
        return ObjectRule(members, len(required), others, least, most)

    def _member(self, parts: list[Part], name: str) -> Iterator[Schema]:
        """What the value of a member has to satisfy."""
        for part in parts:
            patterns = part.get("patternProperties", {})
            found = [part["properties"][name]] if name in part.get("properties", ()) else []
            found += [item for pattern, item in patterns.items() if self._matches(pattern, name)]
            yield from found or [part.get("additionalProperties", True)]

    def _others(self, parts: list[Part], names: list[str]) -> Iterator[tuple[str, str]]:
        """Rules of the names and values of members that are not called by a name in the schema."""
        rest = [part.get("additionalProperties", True) for part in parts]
        matching: dict[str, Part] = {}
        for pattern in dict.fromkeys(pattern for part in parts for pattern in part.get("patternProperties", ())):
            values = [part.get("patternProperties", {}).get(pattern, item) for part, item in zip(parts, rest)]
            taken = [name for name in names if self._matches(pattern, name)]
            name = _both({"type": "string", "pattern": pattern}, *[{"pattern": not_any_of(taken)}] * bool(taken))
            if values == rest or not any(self._engine(name)):
                continue
            if any(any(self._engine(_both(name, other))) for other in matching.values()):
                raise self._refusal("patternProperties that overlap")
            matching[pattern] = name
            yield self._value([name]), self._value(values)
        if False not in rest:
            yield self._other_names(names, list(matching)), self._value(rest)

    def _matches(self, pattern: str, name: str) -> bool:
        if (pattern, name) not in self._matching:
            both = _both({"const": name}, {"type": "string", "pattern": pattern})
            self._matching[pattern, name] = any(self._engine(both))
        return self._matching[pattern, name]

    def _other_names(self, names: list[str], patterns: list[str]) -> str:
        """The rule of all names but these and those that a pattern matches.

        Beside names there is one spelling for each character. Beside patterns there are no escapes: those are patterns
        of what is spelled.
        """
        character = r'[^"\\\x00-\x1f\x7f]'
        any_name = f'/"{character}*"/' if patterns else rf'/"(?:{character}|\\[nrbtf\x{{5c}}\x{{22}}])*"/'
        taken = [literal(json.dumps(name, ensure_ascii=False)[1:-1]) for name in names]
        taken += map(whole_text, patterns)
        if not taken:
            return self._value([{"type": "string"}])
        terminal = f'{any_name} & ~/"(?:{"|".join(taken)})"/'
        if terminal not in self._names:
            self._names[terminal] = f"v{len(self._names)}"
            self._rules[self._names[terminal]] = [TextRule(terminal=terminal)]
        return self._names[terminal]

    # Rules

    def _possible(self) -> set[str]:
        """The rules that some text follows."""
        possible: set[str] = set()
        size = -1
        while size < len(possible):
            size = len(possible)
            possible |= {
                name for name, readings in self._rules.items() if any(it.possible(possible) for it in readings)
            }
        return possible

    def _reachable(self, start: str, possible: set[str]) -> list[str]:
        """The rules that are in use, each once."""
        found = {start: None}
        waiting = [start]
        while waiting:
            for reading in self._rules[waiting.pop()]:
                new = [name for name in dict.fromkeys(reading.uses()) if name in possible and name not in found]
                found |= dict.fromkeys(new)
                waiting += new
        return list(found)


def _both(*schemas: Schema) -> Part:
    """What validates against all schemas, none of which is a boolean."""
    return {"allOf": list(schemas)} if schemas else {}


def _counts(parts: list[Part], kind: str) -> tuple[int, int | None]:
    """The strictest least and most."""
    most = [part[f"max{kind}"] for part in parts if f"max{kind}" in part]
    return max(part.get(f"min{kind}", 0) for part in parts), min(most) if most else None
