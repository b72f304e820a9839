"""Under a grammar the script is said where it is allowed; elsewhere the answer ends soon."""

import json

import jsonschema
import pytest
from scripted import WEATHER_CALL, user

from cvllm_jax import FinishReason, GenerationParams
from cvllm_jax.grammar import JsonObjectGrammar, JsonSchemaGrammar, RegexGrammar, tool_call_grammar

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
NODE = {
    "type": "object",
    "properties": {"child": {"$ref": "#"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "additionalProperties": False,
}
REST = {
    "type": "object",
    "properties": {
        "on": {"type": "boolean"}, "kind": {"enum": ["north", "south"]}, "numbers": {"type": "array", "minItems": 2},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "text": {"type": "string", "minLength": 3},
        "ratio": {"type": "number", "exclusiveMinimum": 0}, "day": {"type": "string", "format": "date"},
    },
    "required": ["on", "kind", "numbers", "next", "text", "ratio", "day"],
}  # fmt: skip


def ask(engine, text, grammar, **params):
    prompt = engine.chat_template.encode(user(text))
    params = {"max_tokens": 400, "temperature": 0.0, **params}
    return engine.generate_sync(prompt, GenerationParams(grammar=grammar, **params))


def test_a_script_that_the_grammar_allows_is_said_unchanged(make_scripted):
    engine = make_scripted()
    output = ask(engine, "a JSON answer", JsonSchemaGrammar(PERSON), temperature=1.0)
    assert output.text == '{"name": "Ada", "age": 36}'
    arguments = {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string"}}}
    calls = tool_call_grammar(
        "<tool_call>\n", "\n", "\n</tool_call>", [("get_weather", arguments)], at_least_one=True
    )
    assert ask(engine, "Weather?", calls, temperature=1.0).text == WEATHER_CALL


@pytest.mark.parametrize("text", ["Weather?", "line 7", "say nothing", "?", "a JSON answer"])
@pytest.mark.parametrize("schema", [PERSON, NODE, REST, {}, {"type": "array"}, True])
def test_an_answer_that_the_grammar_forbids_ends_soon(make_scripted, schema, text):
    output = ask(make_scripted(), text, JsonSchemaGrammar(schema))
    assert output.finish_reason is FinishReason.Stop
    jsonschema.validate(json.loads(output.text), schema)
    assert len(output.tokens) < 250


@pytest.mark.parametrize("text", ["Weather?", "say nothing", "line 15"])
def test_other_grammars(make_scripted, text):
    engine = make_scripted()
    assert isinstance(json.loads(ask(engine, text, JsonObjectGrammar()).text), dict)
    forced = ask(engine, text, RegexGrammar("(yes|no|perhaps) [0-9]+"))
    assert forced.finish_reason is FinishReason.Stop
    assert len(forced.tokens) < 20
