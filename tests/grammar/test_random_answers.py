"""Whatever a model writes under a schema, once finished, validates: the judge is jsonschema."""

import json

import jsonschema
import pytest
from answers import random_answer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvllm_jax.grammar import GrammarError, JsonSchemaGrammar

CLOSED = {"type": "object", "additionalProperties": False}

SCHEMAS = {
    "open": {"type": "object", "properties": {"a": {"type": "integer"}, "n": {"maxLength": 3}}, "required": ["a"]},
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 3},
    "patterns": {"type": "object", "patternProperties": {"^x": {"type": "null"}, "^[^x]": {"type": "integer"}}},
    "numbers": {"type": "array", "maxItems": 3, "minItems": 1, "items": {
        "anyOf": [{"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                  {"type": "integer", "multipleOf": 7}, {"type": "number", "minimum": -3.25, "maximum": -0.5}]}},
    "text": {**CLOSED, "properties": {"p": {"type": "string", "pattern": r"^[^\d\W]{1,3}\s?\S$"},
                                      "q": {"type": "string", "minLength": 1, "maxLength": 4}}, "required": ["p", "q"]},
    "formats": {"type": "array", "prefixItems": [{"type": "string", "format": name} for name in
                ("date", "ipv4", "ipv6", "uuid", "time")], "items": False, "minItems": 5},
    "one": {**CLOSED, "properties": {"k": {"enum": ["a", "b"]}, "x": {"type": "integer"}, "y": {"const": 0.5}},
            "oneOf": [{"required": ["x"]}, {"required": ["y", "k"]}]},
    "if": {**CLOSED, "properties": {"k": {"enum": ["a", "b", None]}, "x": {"maximum": 9, "type": "integer"}},
           "required": ["k"], "if": {"properties": {"k": {"const": "a"}}}, "then": {"required": ["x"]},
           "else": {"properties": {"x": {"minimum": 5}}}},
    "tree": {"$ref": "#/$defs/t", "$defs": {"t": {**CLOSED, "required": ["v"], "properties": {
        "v": {"type": "integer", "minimum": 0, "maximum": 99},
        "c": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/t"}}}}}},
    "not": {"type": "array", "maxItems": 4, "items": {"not": {"enum": ["a", "aa", 1, None, True]},
                                                      "type": ["string", "integer", "null", "boolean"]}},
}  # fmt: skip


def valid(schema: object, text: str) -> None:
    value = json.loads(text)
    dialect = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    dialect(schema, format_checker=dialect.FORMAT_CHECKER).validate(value)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_finished_answers_validate(compilers, tokenizers, kind, name):
    grammar = compilers[kind].compile(JsonSchemaGrammar(SCHEMAS[name]))
    texts = [random_answer(grammar, tokenizers[kind], seed) for seed in range(25)]
    finished = [text for text in texts if text is not None]
    assert len(finished) >= 5
    for text in finished:
        valid(SCHEMAS[name], text)


def test_with_a_real_vocabulary(demo):
    tokenizer, compiler = demo
    closing = (b'"', b"}", b'"}', b'",', b"]")
    for name, schema in SCHEMAS.items():
        grammar = compiler.compile(JsonSchemaGrammar(schema))
        finished = [random_answer(grammar, tokenizer, seed, ends=closing) for seed in range(6)]
        assert any(finished), name
        for text in filter(None, finished):
            valid(schema, text)


NAMES = st.sampled_from(["a", "b", "ab", "é", 'q"', "n\n"])
LEAVES = st.one_of(
    st.sampled_from([{}, {"type": "null"}, {"type": "boolean"}, {"type": "string"}, {"type": ["integer", "string"]}]),
    st.builds(lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
              st.integers(-200, 200), st.integers(0, 300)),
    st.builds(lambda low, size: {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + size},
              st.floats(-3, 3).map(lambda number: round(number, 3)), st.sampled_from([0.001, 0.5, 7])),
    st.builds(lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size},
              st.integers(0, 3), st.integers(0, 3)),
    st.lists(st.one_of(NAMES, st.integers(-3, 3), st.none(), st.booleans(), st.sampled_from([0.5, -2.25])),
             min_size=1, max_size=4, unique_by=json.dumps).map(lambda values: {"enum": values}),
    st.sampled_from([r"^\w+$", "a|b$", "^[^a]", "x{2,3}", r"^(ab?)*$", r"^\d{2}-\D$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 6}),
)  # fmt: skip


def objects(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries(
        {"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, max_size=3)},
        optional={
            "required": st.lists(NAMES, max_size=2, unique=True),
            "additionalProperties": st.one_of(st.just(False), inner),
            "maxProperties": st.integers(1, 4),
            "minProperties": st.just(1),
            "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=1),
            "propertyNames": st.sampled_from([{"maxLength": 1}, {"enum": ["a", "b"]}]),
        },
    )


def combined(inner: st.SearchStrategy) -> st.SearchStrategy:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        objects(inner),
        st.fixed_dictionaries({"type": st.just("array"), "maxItems": st.integers(0, 3)},
                              optional={"items": inner, "prefixItems": several, "minItems": st.integers(0, 1)}),
        several.map(lambda schemas: {"anyOf": schemas}),
        several.map(lambda schemas: {"oneOf": schemas}),
        st.tuples(inner, inner).map(lambda pair: {"allOf": list(pair)}),
        st.tuples(inner, inner).map(lambda pair: {**pair[0], "not": pair[1]}),
        st.tuples(inner, inner, inner).map(lambda three: dict(zip(("if", "then", "else"), three))),
        st.tuples(objects(inner), several).map(lambda pair: {**pair[0], "oneOf": pair[1]}),
    )  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=st.recursive(LEAVES, combined, max_leaves=6), seed=st.integers(0, 2**32))
def test_answers_to_any_schema_validate(compiler, tokenizer, schema, seed):
    try:
        grammar = compiler.compile(JsonSchemaGrammar(schema))
    except GrammarError:
        return
    for offset in range(4):
        text = random_answer(grammar, tokenizer, seed + offset, limit=120)
        if text is not None:
            valid(schema, text)
