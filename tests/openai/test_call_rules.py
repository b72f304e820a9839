"""Calls in every format's markup, written by chance under its grammar: arguments validate, says jsonschema."""

import json
from itertools import product
from pathlib import Path

import jsonschema
import pytest
from answers import random_answer, takes
from vocabularies import byte_level, end_of

from cvllm_jax.grammar import GrammarError, JsonSchemaGrammar, LarkGrammar, TextGrammar
from cvllm_jax.grammar.compiler import GrammarCompiler
from cvllm_jax.openai import get_tool_parser
from cvllm_jax.openai.answer_rules import answer_grammar
from cvllm_jax.openai.call_rules import Calls
from cvllm_jax.openai.tool_parsers import fold
from cvllm_jax.openai.tool_parsers.response_template import ResponseTemplateParser
from cvllm_jax.text import Tokenizer

CLOSED = {"type": "object", "additionalProperties": False}
TREE = {**CLOSED, "required": ["v"], "properties": {
    "v": {"type": "integer", "minimum": 0, "maximum": 20},
    "c": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/tree"}}}}  # fmt: skip

SCHEMAS = {
    "plain": {**CLOSED, "required": ["city"], "properties": {
        "city": {"type": "string", "maxLength": 6}, "n": {"type": "integer"}, "f": {"type": "boolean"},
        "z": {"type": "null"}}},
    "constants": {**CLOSED, "required": ["unit", "k"], "properties": {
        "unit": {"type": "string", "enum": ["celsius", "it's \"x\"", "5"]}, "c": {"const": {"a": [True, "b"]}},
        "k": {"enum": [1, "a", None, True, 0.5]}}},
    "patterns": {**CLOSED, "required": ["id", "mail"], "properties": {
        "id": {"type": "string", "pattern": r"^[A-Z]{2}-\d{1,3}$"}, "day": {"type": "string", "format": "date"},
        "mail": {"type": "string", "format": "email"},
        "two": {"type": "string", "minLength": 2, "maxLength": 4}}},
    "nested": {**CLOSED, "required": ["items"], "$defs": {"tree": TREE}, "properties": {
        "items": {"type": "array", "minItems": 1, "maxItems": 3, "items": {
            **CLOSED, "required": ["a"], "properties": {
                "a": {"type": "boolean"}, "b": {"type": ["string", "null"], "maxLength": 3}}}},
        "pair": {"type": "array", "prefixItems": [{"type": "null"}, {"enum": ["x", 1]}], "items": False},
        "tree": {"$ref": "#/$defs/tree"}}},
    "unions": {**CLOSED, "required": ["x", "y", "w"], "properties": {
        "x": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}]},
        "y": {"type": ["string", "integer"], "maxLength": 4}, "b": {"type": ["boolean", "integer"]},
        "w": {"oneOf": [{"type": "integer", "minimum": 5, "maximum": 20}, {"type": "string", "maxLength": 5},
                        {"type": "array", "items": {"type": "number"}, "maxItems": 2}]}}},
    "numbers": {**CLOSED, "required": ["a", "b", "c"], "properties": {
        "a": {"type": "number", "minimum": 0}, "b": {"type": "number"},
        "c": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}}},
    "open": {"properties": {"n": {"type": "number"}}, "additionalProperties": {"type": "integer"}},
    "either": {**CLOSED, "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 3}},
               "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "empty": {**CLOSED, "properties": {}},
}  # fmt: skip
#: Parser and what decides the form in the chat template -> how an answer with a call amid text begins.
FORMS = {
    ("hermes", ""): "Well: <tool_call>",
    ("llama3_json", ""): "{",
    ("pythonic", ""): "[",
    ("pythonic", "<|python_start|>"): "<|python_start|>",
    ("qwen3_coder", ""): "Well: <tool_call>",
    ("glm45", ""): "Well: <tool_call>",
    ("glm45", "</arg_key><arg_value>"): "Well: <tool_call>",
    ("minimax_m2", ""): "Well: <minimax:tool_call>",
    ("mistral", ""): "Well: [TOOL_CALLS]",
    ("mistral", "[ARGS]"): "Well: [TOOL_CALLS]",
    ("granite", ""): "Well: <|tool_call|>",
    ("phi4_mini", ""): "Well: <|tool_call|>",
    ("phi4_mini", "functools"): "Well: functools",
    ("deepseek_v3", ""): "Well: <｜tool▁calls▁begin｜>",
    ("deepseek_v3", "```json"): "Well: <｜tool▁calls▁begin｜>",
}
NAMES = ("f", "get_it")
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "response_template.json").read_text(encoding="utf-8"))
#: Response templates by name -> as above, where text stands in no field of its own.
TEMPLATES = {
    "tags": "Well: <tool_call>",
    "inline": "Well: <tool_call>",
    "dialect": "Well: <|tool_call>call:",
    "channels": None,
    "list": None,
    "blocks": None,
}
ENDS = tuple(character.encode() for character in "\"'}])<>|/\n")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(byte_level())


@pytest.fixture(scope="module")
def compiler(tokenizer):
    return GrammarCompiler(tokenizer, [end_of(tokenizer)], tokenizer.vocab_size)


def tools(schema):
    return [{"type": "function", "function": {"name": name, "parameters": schema}} for name in NAMES]


def grammar_of(form, schema, *, required=True, parallel=True, content=None):
    calls = Calls(form=form, tools=[(name, schema) for name in NAMES], required=required, parallel=parallel)
    return answer_grammar(content, calls, None, {})


def found_in(parser, schema, text):
    """Content and calls, which validate; streamed character by character they are the same."""
    content, calls = parser.parse(text, tools(schema))
    stream = parser.stream(tools(schema))
    message = fold([*(event for char in text for event in stream.feed(char)), *stream.finish()])
    assert [(call.name, call.arguments) for call in message.tool_calls] == [(it.name, it.arguments) for it in calls]
    assert message.content == content
    validator = jsonschema.Draft202012Validator
    for call in calls:
        assert call.name in NAMES
        validator(schema, format_checker=validator.FORMAT_CHECKER).validate(json.loads(call.arguments))
    return content, calls


@pytest.mark.parametrize(("form", "schema"), list(product([*FORMS, *TEMPLATES], SCHEMAS)), ids=str)
def test_calls_by_chance_validate(compiler, tokenizer, form, schema):
    """Required calls, and calls amid text, which begin as the model begins them."""
    schema = SCHEMAS[schema]
    if form in FORMS:
        parser, begin = get_tool_parser(form[0]), FORMS[form]
        written = parser.call_form(form[1])
    else:
        parser, begin = ResponseTemplateParser(GOLDEN["templates"][form]), TEMPLATES[form]
        written = parser.call_form("")
        assert written.free_text is (begin is not None)
    counts = []
    for required in (True, False) if begin else (True,):
        grammar = compiler.compile(grammar_of(written, schema, required=required))
        for seed in range(6):
            text = random_answer(
                grammar, tokenizer, seed, limit=900, ends=ENDS, begin="" if required else begin
            )
            if text is None:
                continue
            content, calls = found_in(parser, schema, text)
            assert calls
            assert content is None or not required
            counts.append(len(calls))
    assert counts


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_there_may_be_several_calls_or_one(compiler, tokenizer, form):
    name, template = form
    parser, schema = get_tool_parser(name), SCHEMAS["empty"]
    several = compiler.compile(grammar_of(parser.call_form(template), schema))
    one = compiler.compile(grammar_of(parser.call_form(template), schema, parallel=False))
    texts = {random_answer(several, tokenizer, seed, ends=ENDS) for seed in range(12)} - {None}
    counts = {text: len(found_in(parser, schema, text)[1]) for text in texts}
    assert max(counts.values()) > 1
    assert {text for text in texts if takes(one, tokenizer, text)} == {text for text in texts if counts[text] == 1}


PLACE = {**CLOSED, "required": ["place"], "properties": {
    "place": {"type": "string"}, "days": {"type": "integer"}, "metric": {"type": ["boolean", "null"]},
    "tags": {"type": "array", "items": {"type": "string"}}}}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pythonic", """[f(place="Rome", days=3)]"""),
        ("pythonic", """[f(metric=True, place='it\\'s \\n', tags=['a', "b"]), get_it(place="", metric=None)]"""),
        ("pythonic", """[f(metric=false, place="é", tags=[])]"""),
        ("pythonic", """[f(place="Rome",\n    days=3)]"""),
        ("qwen3_coder", "<parameter=place>\nRome\n\n 5\n</parameter>\n"),
        (
            "qwen3_coder",
            '<parameter=tags>\n["a", "<b>"]\n</parameter>\n<parameter=metric>\nTrue\n</parameter>\n'
            "<parameter=place>\n\n</parameter>\n",
        ),
    ],
)
def test_calls_as_models_write_them(compiler, tokenizer, name, text):
    parser = get_tool_parser(name)
    if name == "qwen3_coder":
        text = f"<tool_call>\n<function=f>\n{text}</function>\n</tool_call>"
    for required in (True, False):
        grammar = compiler.compile(grammar_of(parser.call_form(""), PLACE, required=required))
        assert takes(grammar, tokenizer, text)
        assert not takes(grammar, tokenizer, text.replace("place", "town"))
    assert found_in(parser, PLACE, text)[1]


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_text_has_no_calls_of_its_own(compiler, tokenizer, form):
    """What any form of the format begins with is in text only as the call that the grammar knows."""
    name, template = form
    parser = get_tool_parser(name)
    grammar = compiler.compile(grammar_of(parser.call_form(template), PLACE, required=False))
    assert takes(grammar, tokenizer, "Rome, then [x](y) and {z}.")
    wrong = '{"name": "f", "arguments": {"days": 0}}'
    for opening, closing in {
        "hermes": [("<tool_call>", "</tool_call>")],
        "llama3_json": [("So ", ""), ("<|python_tag|>", ""), ("So [", "]")],
        "pythonic": [],
        "qwen3_coder": [],
        "glm45": [],
        "minimax_m2": [],
        "mistral": [("[TOOL_CALLS]", ""), ("[TOOL_CALLS] [", "]")],
        "granite": [("<|tool_call|>", ""), ("<tool_call>", "</tool_call>")],
        "phi4_mini": [("functools", ""), ("<|tool_call|>", "<|/tool_call|>")],
        "deepseek_v3": [],
    }[name]:
        text = f"{opening}{wrong}{closing}"
        assert parser.parse(text)[1]
        assert not takes(grammar, tokenizer, text)
    for text in {
        "pythonic": ["[f(days=0)]", "So <|python_start|>[f(days=0)]", "<|python_tag|>[f()]"],
        "glm45": ["<tool_call>f</tool_call>", "<tool_call> f <arg_key></tool_call>"],
        "minimax_m2": ['<minimax:tool_call><invoke name="f"></invoke></minimax:tool_call>'],
        "qwen3_coder": ["So <function=f></function>", "<tool_call><function=f></tool_call>"],
        "deepseek_v3": ["So <｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>"],
    }.get(name, []):
        assert parser.parse(text)[1]
        assert not takes(grammar, tokenizer, text)


@pytest.mark.parametrize("name", ["pythonic", "qwen3_coder"])
def test_content_of_a_schema_or_calls(compiler, tokenizer, name):
    grammar = grammar_of(get_tool_parser(name).call_form(""), PLACE, required=False, content=JsonSchemaGrammar(PLACE))
    compiled = compiler.compile(grammar)
    assert takes(compiled, tokenizer, '{"place": "Rome"}')
    assert not takes(compiled, tokenizer, "Rome")
    assert takes(compiled, tokenizer, "[f(place='Rome')]") is (name == "pythonic")


@pytest.mark.parametrize(
    ("name", "schema", "reason"),
    [
        ("pythonic", {"patternProperties": {"^x": {"type": "integer"}}}, "patternProperties"),
        ("pythonic", {"properties": {"a b": {}}, "required": ["a b"]}, "'a b'"),
        ("pythonic", {"minProperties": 1}, "minProperties"),
        ("pythonic", {"properties": {"a": {"contains": {}}}}, "contains"),
        ("qwen3_coder", {"properties": {"a": {"type": "object", "patternProperties": {"x": False}}}}, "patternProp"),
        ("qwen3_coder", {"properties": {"<a>": {}}}, "'<a>'"),
        ("qwen3_coder", {"properties": {"a": {"type": "string", "const": "</parameter>"}}}, "no value"),
        ("qwen3_coder", {"properties": {f"a{n}": {} for n in range(61)}}, "61 properties .* the limit is 60"),
    ],
)
def test_what_a_format_cannot_have_is_refused_by_name(compiler, name, schema, reason):
    with pytest.raises(GrammarError, match=reason):
        compiler.compile(grammar_of(get_tool_parser(name).call_form(""), schema))


def test_a_response_template_that_can_be_read_only(compiler):
    parser = ResponseTemplateParser(GOLDEN["templates"]["lines"])
    with pytest.raises(GrammarError, match=r"its pattern .* cannot be written in one way"):
        parser.call_form("")
    form = ResponseTemplateParser(GOLDEN["templates"]["dialect"]).call_form("")
    with pytest.raises(GrammarError, match="the name 'get-it' cannot be written"):
        answer_grammar(None, Calls(form=form, tools=[("get-it", {})], required=True, parallel=True), None, {})


TEXTS = {
    "regex": TextGrammar("regex", r'^[a-c"<]{2,4}\n?$'),
    "lark": TextGrammar("lark", 'start: line{1,3} "end"?\nline: /[^\\n]{0,5}/ LF\n%import common.LF'),
    "sums": TextGrammar("lark", 'start: NUMBER (SIGN NUMBER)*\nSIGN: "+" | "\\"" | "<"\nNUMBER: /[0-9]+/'),
}


@pytest.mark.parametrize(("form", "grammar"), list(product([*FORMS, *TEMPLATES], TEXTS)), ids=str)
def test_texts_of_a_grammar_by_chance(compiler, tokenizer, form, grammar):
    """A custom tool's input is read as a text of its grammar, in calls that are required and in calls amid text."""
    source = TEXTS[grammar]
    alone = compiler.compile(
        LarkGrammar(source.definition if source.syntax == "lark" else f"start: /{source.definition.strip('^$')}/")
    )
    if form in FORMS:
        parser, begin = get_tool_parser(form[0]), FORMS[form]
        written = parser.call_form(form[1])
    else:
        parser, begin = ResponseTemplateParser(GOLDEN["templates"][form]), TEMPLATES[form]
        written = parser.call_form("")
    schema = {"type": "object", "required": ["input"], "properties": {"input": {"type": "string"}}}
    count = 0
    for required in (True, False) if begin else (True,):
        compiled = compiler.compile(grammar_of(written, source, required=required))
        for seed in range(8):
            text = random_answer(compiled, tokenizer, seed, limit=900, ends=ENDS, begin="" if required else begin)
            if text is None:
                continue
            calls = found_in(parser, schema, text)[1]
            assert calls
            for call in calls:
                count += 1
                assert takes(alone, tokenizer, json.loads(call.arguments)["input"]), text
    assert count
