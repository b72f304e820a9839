"""JSON Schema, read by an allow-list of keywords, into the subset that the constraint engine enforces exactly.

Every keyword of drafts 4 to 2020-12 is handled here, rewritten into others, or refused by name; other names are
annotations, as the standard has it. What the engine would treat loosely (escapes that spell a property's name another
way, members that count twice, bounds that rounding crosses) is narrowed here or refused. So an accepted schema means:
every finished answer validates. The converse has limits that come with generation from left to right: numbers and
characters come in their plain spelling, and properties in the order of the schema, unless that has a keyword which
leaves the order open.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urldefrag, urljoin

from cvllm_jax.errors import shown
from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.numbers import Multiples
from cvllm_jax.grammar.schema_keywords import read_keywords
from cvllm_jax.grammar.schema_logic import Json, Schema, SchemaLogic

__all__ = ["SchemaReader"]

MAX_SUBSCHEMAS = 20_000
MAX_DEPTH = 60
"""Of nested schemas, references followed."""

_DRAFT = re.compile(r"https?://json-schema\.org/(?:draft[-/](04|06|07|2019-09|2020-12)/)?schema[#/]*")
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")


class SchemaReader:
    """Reads one schema, or several whose definitions go together.

    Attributes:
        definitions: what ``#/$defs/NAME`` refers to in the schemas that :meth:`read` returned.
        any_order: a keyword that leaves the order of members open, if one was read.
    """

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self._names: dict[tuple[int, str], str] = {}
        self._roots: list[Json] = []
        self._root: Json = None
        self.draft = 2020
        self._subschemas = self._depth = 0
        self.multiples = Multiples()
        self._controls: str | None = None
        self.any_order = ""
        self.logic = SchemaLogic(self.definitions)

    def read(self, schema: Json) -> Schema:
        """The schema in the engine's subset. Its references stand in :attr:`definitions`.

        Raises:
            GrammarError: it is invalid, too large, or has what cannot be enforced; the message names the keyword.
        """
        self._root = schema
        self._roots.append(schema)
        self.draft = _draft(schema)
        return self.schema(schema, "#", False)

    def needs_plain_names(self, schema: Schema) -> bool:
        """Whether some object has named properties beside others.

        The engine keeps names apart by their spelling, so each must have one only: no ``\\u`` escapes.

        Raises:
            GrammarError: a name or constant has no other spelling.
        """
        plain = any(map(_mixes_names, [schema, *self.definitions.values()]))
        if plain and self._controls is not None:
            raise GrammarError(
                f"the schema names {self._controls}, whose control characters would need an escape, and has an object "
                f"with other properties than those it names"
            )
        return plain

    def schema(self, node: Json, path: str, embedded: bool) -> Schema:
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise GrammarError(f"the schema at {path} must be an object or a boolean, not {shown(node)}")
        self._subschemas += 1
        if self._subschemas > MAX_SUBSCHEMAS:
            raise GrammarError(f"the schema has more than {MAX_SUBSCHEMAS} parts")
        if self._depth >= MAX_DEPTH:
            raise GrammarError(f"the schema is nested more than {MAX_DEPTH} deep at {path}")
        if self.draft <= 7 and "$ref" in node:
            node = {"$ref": node["$ref"]}  # those drafts ignore what stands beside it
        identity = node.get("id" if self.draft == 4 else "$id")
        embedded |= path != "#" and isinstance(identity, str) and not identity.startswith("#")
        self._depth += 1
        try:
            return read_keywords(self, node, path, embedded)
        finally:
            self._depth -= 1

    def reference(self, reference: Json, path: str, embedded: bool) -> Schema:
        if not isinstance(reference, str):
            raise GrammarError(f"$ref at {path} must be a string")
        target, fragment = reference, ""
        base = self._root.get("id" if self.draft == 4 else "$id", "") if isinstance(self._root, dict) else ""
        if isinstance(base, str):
            target, fragment = urldefrag(urljoin(base, reference))
            if target == urldefrag(base)[0]:
                target = ""
        if embedded or target or (fragment and not fragment.startswith("/")):
            raise GrammarError(f"$ref {shown(reference)} is not supported: it must point into its own schema by path")
        key = (len(self._roots), fragment)
        if key not in self._names:
            name = self._names[key] = f"d{len(self._names)}"
            self.definitions[name] = {"$ref": f"#/$defs/{name}"}  # until it is read: known to nobody
            found = self._lookup(fragment, reference)
            read = self.schema(found, f"#{fragment}", False)
            if read == self.definitions[name]:
                raise GrammarError(f"$ref {shown(reference)} refers to itself")
            self.definitions[name] = read
        return {"$ref": f"#/$defs/{self._names[key]}"}

    def _lookup(self, fragment: str, reference: str) -> Json:
        node = self._root
        for part in fragment.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            elif isinstance(node, dict) and key in node:
                node = node[key]
            else:
                raise GrammarError(f"$ref {shown(reference)} points at nothing")
        return node

    def text(self, value: str) -> None:
        """Note a string that answers may have to spell."""
        if _CONTROL.search(value):
            self._controls = shown(value)


def _draft(schema: Json) -> int:
    """4, 6, 7, 2019 or 2020."""
    uri = schema.get("$schema") if isinstance(schema, dict) else None
    if uri is None:
        return 2020
    match = _DRAFT.fullmatch(uri) if isinstance(uri, str) else None
    if match is None:
        raise GrammarError(f"$schema {shown(uri)} is none of the drafts 4, 6, 7, 2019-09 and 2020-12")
    return int((match[1] or "2020")[:4])


def _mixes_names(schema: Json) -> bool:
    if isinstance(schema, list):
        return any(map(_mixes_names, schema))
    if not isinstance(schema, dict):
        return False
    names = {"properties", "required", "patternProperties"} & schema.keys()
    if names and (schema.get("additionalProperties") is not False or schema.get("patternProperties")):
        return True
    return any(_mixes_names(value) for key, value in schema.items() if key not in ("const", "enum"))
