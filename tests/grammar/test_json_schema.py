"""Which values a schema lets an answer be, and what is refused by name."""

import itertools
import json

import pytest
from answers import accepts, byte_ids, follow, takes

from cvllm_jax.grammar import GrammarError, JsonSchemaGrammar

OBJECT = {"type": "object"}

# Schema, values that are answers, values that are not.
VERDICTS = [
    ({"type": "integer"}, [0, -7, 10**20], [1.5, "1", None, True]),
    ({"type": ["string", "null"]}, ["", "é\n", None], [0, []]),
    (True, [None, 1.5e300, {"a": [{}]}], []),
    ({"enum": [1, "a", None, [1, {"b": 2}]]}, [1, "a", None, [1, {"b": 2}]], [2, "b", [1], True]),
    ({"const": 0.1}, [0.1], [0.2, 0]),
    ({"type": "integer", "enum": [1, 2.5]}, [1], [2.5, 2]),
    # Numbers
    ({"type": "integer", "minimum": -3, "exclusiveMaximum": 10}, [-3, 9], [-4, 10]),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 2.5}, [0.001, 2.5, 1], [0, -1, 2.6]),
    ({"type": "number", "minimum": 0, "exclusiveMinimum": True}, [0.5], [0]),
    ({"type": "integer", "maximum": 2**64 - 1, "minimum": -(2**63)}, [0, 2**62, -(2**62)], [2**64]),
    ({"type": "integer", "multipleOf": 6}, [0, -12, 600], [3, 7]),
    ({"type": "number", "multipleOf": 3.0}, [0, 9], [4, 3.5]),
    ({"allOf": [{"multipleOf": 4}, {"multipleOf": 6}], "type": "integer"}, [12, 24], [4, 6, 8]),
    # Strings
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "é\u20ac"], ["a", "abcd"]),
    ({"type": "string", "format": "date"}, ["2024-02-29", "2000-02-29"], ["2023-02-29", "1900-02-29", "0000-01-01"]),
    ({"type": "string", "format": "date-time"}, ["2024-01-01T23:59:60Z"], ["2024-01-01T22:59:60Z", "2024-01-01"]),
    ({"type": "string", "format": "uri-reference"}, ["/a?b#c", "a/b", "//h/x", "http://h", ""], ["\\a", "a b"]),
    ({"type": "string", "format": "hostname"}, ["a-b.c"], ["a--b", "-a", "a" * 64]),
    ({"type": "string", "format": "json-pointer"}, ["", "/a~1b"], ["a", "/~2"]),
    ({"type": "string", "format": "colour of the editor"}, ["anything"], [1]),
    ({"type": "integer", "format": "int32"}, [5], ["5"]),
    # Arrays
    ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
     [[1], [1, 2]], [[], [1, 2, 3], ["a"]]),
    ({"type": "array", "prefixItems": [{"const": 1}], "items": False}, [[], [1]], [[2], [1, 2]]),
    ({"type": "array", "items": [{"const": 1}], "additionalItems": {"const": 2}}, [[1, 2, 2]], [[1, 1]]),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, [[], [5]], [[1, 1]]),
    # Objects
    ({**OBJECT, "properties": {"a": {"type": "integer"}}}, [{}, {"a": 1, "b": "x"}], [{"a": "x"}]),
    ({**OBJECT, "properties": {"a": {}, "b": {}}, "required": ["b"], "additionalProperties": False},
     [{"b": 1}, {"a": 1, "b": 2}], [{"a": 1}, {"b": 1, "c": 1}]),
    ({**OBJECT, "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False},
     [{"x1": 1}], [{"y": 1}, {"x": ""}]),
    ({**OBJECT, "properties": {"a": {}}, "unevaluatedProperties": False}, [{"a": 1}], [{"b": 1}]),
    ({**OBJECT, "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "null"}},
     [{"a": None}], [{"c": None}, {"a": 1}]),
    ({**OBJECT, "propertyNames": {"maxLength": 2}}, [{"ab": 1}], [{"abc": 1}]),
    ({**OBJECT, "minProperties": 1}, [{"a": 1}], [{}]),
    ({**OBJECT, "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
    ({**OBJECT, "dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"b": 1, "a": 1}], [{"a": 1}]),
    ({**OBJECT, "properties": {"a": {}}, "dependencies": {"a": {"required": ["b"]}}},
     [{"b": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
    # Combinations
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, [1, "a"], [None]),
    ({"oneOf": [{"type": "number", "minimum": 3}, {"type": "number", "maximum": 5}], "type": "number"},
     [2, 6], [3, 4, 5]),
    ({**OBJECT, "properties": {"a": {}, "b": {}}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
     [{"a": 1}, {"b": 1}], [{}, {"a": 1, "b": 1}]),
    ({"oneOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}, ["a", "c"], ["b", "d"]),
    ({"oneOf": [{**OBJECT, "properties": {"kind": {"const": kind}, kind: {}}, "required": ["kind"]} for kind in "xy"]},
     [{"kind": "x"}, {"kind": "y", "y": 1}], [{"kind": "z"}, {}]),
    ({"not": {"type": "string"}}, [1, None, {}], ["a"]),
    ({"type": "string", "not": {"enum": ["ab", "a", ""]}}, ["b", "abc", "ac"], ["a", "ab", ""]),
    ({"type": "integer", "not": {"const": 5}}, [4, 6], [5]),
    ({**OBJECT, "not": {"required": ["a", "b"]}}, [{}, {"a": 1}], [{"a": 1, "b": 1}]),
    ({"type": "number", "not": {"exclusiveMinimum": 0}}, [0, -1], [1, 0.5]),
    ({**OBJECT, "properties": {"k": {"enum": ["a", "b"]}, "x": {}}, "required": ["k"],
      "if": {"properties": {"k": {"const": "a"}}}, "then": {"required": ["x"]}, "else": {"properties": {"x": False}}},
     [{"k": "a", "x": 1}, {"k": "b"}], [{"k": "a"}, {"k": "b", "x": 1}]),
    ({"allOf": [{"type": "integer"}, {"minimum": 3}], "maximum": 5}, [3, 5], [2, 6]),
    # References
    ({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "null"}}}, [None], [1]),
    ({"$id": "http://x/y", "$ref": "http://x/y#/$defs/a", "$defs": {"a": {"const": 1}}}, [1], [2]),
    ({**OBJECT, "properties": {"next": {"$ref": "#"}, "v": {"type": "integer"}}, "additionalProperties": False},
     [{}, {"next": {"next": {"v": 1}}}], [{"next": 1}, {"next": {"w": 1}}]),
    ({"$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a", "minimum": 3}, [3], [2]),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {"type": "integer"}},
      "$ref": "#/definitions/a", "minimum": 3}, [2, 3], ["a"]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "answers", "others"), VERDICTS, ids=[json.dumps(case[0])[:60] for case in VERDICTS])
def test_verdicts(compiler, tokenizer, schema, answers, others):
    grammar = compiler.compile(JsonSchemaGrammar(schema))
    assert [value for value in answers if not accepts(grammar, tokenizer, schema, value)] == []
    assert [value for value in others if accepts(grammar, tokenizer, schema, value)] == []


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"contains": {"type": "integer"}}, "contains at #"),
        ({"properties": {"a": {"items": {"uniqueItems": True}}}}, "uniqueItems at #/properties/a/items"),
        ({"not": {"pattern": "a"}}, "not"),
        ({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, "oneOf"),
        ({"if": {"pattern": "a"}, "then": {"maxLength": 1}}, "if"),
        ({"allOf": [{}], "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"unevaluatedItems": {"type": "null"}, "items": [{}]}, "unevaluatedItems"),
        ({"propertyNames": {"format": "email"}}, "propertyNames"),
        ({"$dynamicRef": "#a"}, r"\$dynamicRef"),
        ({"$ref": "other.json"}, r"\$ref 'other.json'"),
        ({"$ref": "#anchor"}, r"\$ref '#anchor'"),
        ({"$ref": "#/nowhere"}, "points at nothing"),
        ({"$ref": "#"}, "refers to itself"),
        ({"properties": {"a": {"$id": "b", "$ref": "#/x"}}, "x": {}}, r"\$ref '#/x'"),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, r"\$schema"),
        ({"extends": {}}, "extends"),
        ({"type": "number", "multipleOf": 0.01}, "multipleOf"),
        ({"type": "integer", "multipleOf": 1_000_003}, "multipleOf"),
        ({"allOf": [{"multipleOf": 97}, {"multipleOf": 89}, {"multipleOf": 83}]}, "multipleOf"),
        ({"type": "number", "maximum": 1e300}, "maximum"),
        ({"const": 2**53 + 1}, "const"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 1}, "maxProperties|min/maxProperties"),
        ({"type": "string", "format": "iri"}, "format 'iri'"),
        ({"type": "string", "pattern": "(?=a)"}, "lookaround"),
        ({"type": "strin"}, "type"),
        ({"required": "a"}, "required"),
        ({"properties": []}, "properties"),
        ({"anyOf": []}, "anyOf"),
        ({"enum": []}, "enum"),
        ({"minLength": -1}, "minLength"),
        ({"minimum": "3"}, "minimum"),
        ({"type": "string", "minLength": 10**9}, "minLength"),
        ({"items": 3}, "the schema at #/items"),
        (False, "accepts no value"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "'a' is unsatisfiable"),
        ({"type": "object", "properties": {"a\x00": {}}}, "control characters"),
        ({"const": "\ud800"}, "no character"),
    ],
)  # fmt: skip
def test_refusals_name_the_keyword(compiler, schema, named):
    with pytest.raises(GrammarError, match=named):
        compiler.compile(JsonSchemaGrammar(schema))


def test_names_have_one_spelling(compiler, tokenizer):
    """Beside named properties, an escape would smuggle one in as another: ``\\u0061`` is ``a``."""
    grammar = compiler.compile(JsonSchemaGrammar({"type": "object", "properties": {"a": {"type": "integer"}}}))
    assert takes(grammar, tokenizer, '{"a":1,"b":"x"}')
    assert not takes(grammar, tokenizer, '{"\\u0061":"x"}')
    closed = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
    grammar = compiler.compile(JsonSchemaGrammar(closed))
    assert takes(grammar, tokenizer, '{"a":"\\u00e9"}')
    assert not takes(grammar, tokenizer, '{"\\u0061":"x"}')


def test_properties_come_in_the_order_of_the_schema(compiler, tokenizer):
    grammar = compiler.compile(JsonSchemaGrammar({"type": "object", "properties": {"b": {}, "a": {}}}))
    assert takes(grammar, tokenizer, '{"b":1,"a":1,"c":1}')
    assert not takes(grammar, tokenizer, '{"a":1,"b":1}')


AB = {"a": {"type": "integer"}, "b": {"type": "string"}}
CLOSED = {**OBJECT, "additionalProperties": False}

# Schema, and members that are an answer in every order; then texts that are none.
ANY_ORDER = [
    ({**CLOSED, "properties": AB, "required": ["b"],
      "oneOf": [{"required": ["a"]}, {"properties": {"b": {"const": ""}}}]}, {"a": 1, "b": "x"},
     ['{"b": "x"}', '{"a": 1, "b": ""}', '{"a": 1, "b": "x", "a": 2}', '{"a": 1, "b": "x", ']),
    ({**OBJECT, "properties": AB, "not": {"required": ["c"]}}, {"a": 1, "b": "x", "d": [], "e": None},
     ['{"c": 1}', '{"d": 1, "c": 1}', '{"a": ""}', '{"\\u0061": ""}', '{"b": "", "a": 1, "b": ""}']),
    ({**OBJECT, "dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 2, "c": 3}, ['{"a": 1}', '{"c": 1, "a": 2}']),
    ({**OBJECT, "properties": {"s": {"type": "string", "format": "path"}, "o": {**CLOSED, "properties": AB}}},
     {"s": "", "o": {"b": "", "a": 1}}, ['{"s": 1}', '{"o": {"b": 1}}', '{"o": {"c": 1}}']),
    ({"type": "array", "prefixItems": [{**CLOSED, "properties": AB}], "items": {"oneOf": [{"type": "null"}]},
      "minItems": 1, "maxItems": 2}, [{"b": "", "a": 1}, None], ["[]", "[null]", '[{"c": 1}]', "[{}, null, null]"]),
    ({**OBJECT, "properties": AB, "required": ["a", "x1"], "patternProperties": {"^x": {"type": "null"}, "^y": False},
      "propertyNames": {}}, {"a": 1, "x1": None, "b": "", "x2": None, "z": 5},
     ['{"a": 1}', '{"a": 1, "x1": 1}', '{"x1": null, "a": 1, "y": 1}', '{"x1": null, "a": 1, "x2": 1}']),
    ({**CLOSED, "properties": {name: {} for name in "abcd"}, "required": ["c"], "minProperties": 2, "maxProperties": 3},
     {"a": 1, "c": 1, "d": 1}, ['{"c": 1}', '{"a": 1, "b": 1, "c": 1, ', '{"a": 1, "b": 1}']),
    ({**OBJECT, "properties": AB, "minProperties": 1}, {"b": "", "c": 1}, ["{}"]),
    ({"$ref": "#/$defs/t", "$defs": {"t": {**CLOSED, "properties": {
        "v": {"type": "integer"}, "c": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
        "not": {"required": ["w"]}}}},
     {"c": [{"c": [], "v": 1}], "v": 2}, ['{"c": [1]}', '{"c": [{"w": 1}]}']),
    ({**OBJECT, "properties": {'q"': {"const": 1}, "é/": {"const": 2}}, "if": {"required": ["n"]}, "then": False},
     {'q"': 1, "é/": 2, 'q\\"': 3, "": 4}, ['{"q\\"": 3}', '{"é/": 3}', '{"\\u00e9/": 3}', '{"n": 1}']),
    ({**OBJECT, "properties": {f"p{index}": {"const": index} for index in range(70)}, "oneOf": [{"required": ["p69"]}]},
     {"p69": 69, "p3": 3, "p68": 68, "other": 1}, ['{"p3": 3}', '{"p69": 69, "p68": 67}', '{"p69": 69, "p69": 69}']),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "value", "others"), ANY_ORDER, ids=[json.dumps(case[0])[:60] for case in ANY_ORDER])
def test_members_come_in_any_order_where_the_schema_leaves_it_open(compiler, tokenizer, schema, value, others):
    grammar = compiler.compile(JsonSchemaGrammar(schema))
    for written in permutations(value):
        assert takes(grammar, tokenizer, json.dumps(written, ensure_ascii=False)), written
    for text in others:
        matcher = grammar.matcher()
        followed = follow(matcher, byte_ids(tokenizer, text), grammar.vocabulary_size)
        assert not followed or (text.endswith("}") and not matcher.accepts_end), text


def permutations(value):
    """The value with the members of its outermost object in every order, or of those in a list."""
    if isinstance(value, list):
        yield from ([item, *value[1:]] for item in permutations(value[0]))
    else:
        yield from map(dict, itertools.permutations(value.items()))


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"required": [f"p{index}" for index in range(64)]}, "more than 63 required properties"),
        ({"properties": AB, "maxProperties": 2}, "maxProperties of an object with properties and others"),
        ({"properties": AB, "patternProperties": {"^x": {"type": "null"}, "z$": False}}, "overlap"),
        ({"properties": AB, "patternProperties": {"(?:^|-)x": {"type": "null"}}}, "anchor"),
        ({"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for i in range(7)]} for j in range(3)]}, "256 ways"),
    ],
)  # fmt: skip
def test_what_cannot_come_in_any_order_is_refused(compiler, schema, named):
    with pytest.raises(GrammarError, match=named):
        compiler.compile(JsonSchemaGrammar({**OBJECT, **schema, "oneOf": [{"type": "object"}]}))


def test_a_bound_is_not_crossed_by_rounding(compiler, tokenizer):
    grammar = compiler.compile(JsonSchemaGrammar({"type": "number", "exclusiveMaximum": 1, "minimum": 0}))
    assert takes(grammar, tokenizer, "0.999999999999999")
    assert not takes(grammar, tokenizer, "0.99999999999999999999")  # which is read as 1.0


def test_unknown_keywords_are_annotations(compiler, tokenizer):
    schema = {"type": "integer", "nullable": True, "x-order": 3, "title": "n", "default": "a", "deprecated": True}
    grammar = compiler.compile(JsonSchemaGrammar(schema))
    assert takes(grammar, tokenizer, "1") and not takes(grammar, tokenizer, "null")


@pytest.mark.parametrize("value", ["é", '"', "a\\b", "\n", "\x7f", "\x01", "\u2028", "😀"])
def test_constants_of_all_characters(compiler, tokenizer, value):
    grammar = compiler.compile(JsonSchemaGrammar({"const": value}))
    spellings = [json.dumps(value, ensure_ascii=ascii_only) for ascii_only in (False, True)] + ['"\\u007f"']
    assert any(takes(grammar, tokenizer, spelling) for spelling in spellings if json.loads(spelling) == value)
