"""What each format allows, and what models make of it."""

import json
import re

import pytest
from tool_formats import TOOLS, read

from cvllm_jax.openai import get_tool_parser
from cvllm_jax.openai.tool_parsers import ToolCallArguments, ToolCallStart


def parsed(parser, text):
    """Content, and name and arguments of each call."""
    message = read(parser, [text])
    return message.content, [(call.name, call.arguments) for call in message.tool_calls]


class TestJson:
    @pytest.mark.parametrize(
        ("body", "calls"),
        [
            ('{"name": "f", "arguments": {"a": 1}}', [("f", '{"a": 1}')]),
            ('{"arguments": {"a": 1}, "name": "f"}', [("f", '{"a": 1}')]),
            ('{"type": "function", "name": "f", "id": 3, "parameters": {}}', [("f", "{}")]),
            ('{"name": "f", "arguments": {"name": "g", "b": "}\\"]"}}', [("f", '{"name": "g", "b": "}\\"]"}')]),
            ('{"name": "f"}', [("f", "{}")]),
            ('{"name": "f", "arguments": {}}', [("f", "{}")]),
            ('{"name": "f", "arguments": null}', [("f", "null")]),
            ('{"name": "f", "arguments": {"a": "\\u00e9\\n"}}', [("f", '{"a": "\\u00e9\\n"}')]),
            ('{"name": "\\u0066", "arguments": {}}', [("f", "{}")]),
            ('{"name": "f", "arguments": "{\\"a\\": \\"x\\\\n\\"}"}', [("f", '{"a": "x\\n"}')]),
            ('{"name": "f", "arguments": "\\ud83d\\ude00 \\ud83d \\ude00"}', [("f", "😀 \ufffd \ufffd")]),
            ('{"name": "f", "arguments": {"a": 1}}}', [("f", '{"a": 1}')]),
            ('[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', [("f", "{}"), ("g", "{}")]),
            ('{"name": "f", "arguments": {}}\n{"name": "g", "arguments": {}}', [("f", "{}"), ("g", "{}")]),
            ('{"name": "f", "arguments": {"a": 1}, }', [("f", '{"a": 1}')]),
            ('{"name": "f", "arguments": {"a": 1} oops', [("f", '{"a": 1}')]),
            ('{"name": "f", oops', [("f", "{}")]),
            (
                '{"name": "f", "arguments": {"a": [1</tool_call><tool_call>{"name": "g"}',
                [("f", '{"a": [1'), ("g", "{}")],
            ),
        ],
    )
    def test_calls(self, body, calls):
        content, found = parsed("hermes", f"Hi.\n<tool_call>\n{body}\n</tool_call>\nBye.")
        assert content == "Hi.\nBye."
        assert found == calls

    @pytest.mark.parametrize(
        "body",
        [
            "",
            "f(1)",
            "{}",
            '{"a": 1}',
            '{"name": 1}',
            '{"name": ""}',
            '{"name": "f',
            '{"name": null}',
            "[]",
            "{'name': 'f'}",
        ],
    )
    def test_text_in_tags_that_is_no_call_is_content(self, body):
        text = f"Hi.\n<tool_call>{body}</tool_call>\n"
        assert parsed("hermes", text) == (text, [])
        if '"f' not in body:  # a string that is not closed has no end to find the next call after
            assert parsed("hermes", text + '<tool_call>{"name": "g"}</tool_call>') == (text.strip(), [("g", "{}")])

    def test_a_malformed_object_in_a_list_leaves_the_others(self):
        text = 'functools[{"name": "f", "arguments": {}}, {"nam": 1}, {"name": "g", "arguments": {}}]'
        assert parsed("phi4_mini", text) == ('{"nam": 1}', [("f", "{}"), ("g", "{}")])

    def test_the_closing_tag_may_be_missing(self):
        text = '<tool_call>{"name": "f", "arguments": {}}\n<tool_call>{"name": "g", "arguments": {}}\n'
        assert parsed("hermes", text) == (None, [("f", "{}"), ("g", "{}")])

    def test_granite_writes_both_markers(self):
        text = '<tool_call>{"name": "f"}</tool_call><|tool_call|> [{"name": "g"}]'
        assert parsed("granite", text) == (None, [("f", "{}"), ("g", "{}")])


class TestLlama3:
    def test_calls_after_each_other(self):
        text = '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}'
        assert parsed("llama3_json", text) == (None, [("f", '{"a": 1}'), ("g", "{}")])

    def test_a_list(self):
        text = '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'
        assert parsed("llama3_json", text) == (None, [("f", "{}"), ("g", "{}")])

    @pytest.mark.parametrize(
        "text",
        [
            '{"name": "Ada", "age": 36}',
            '{"name": "Ada"}',
            '{"people": [{"name": "Ada", "parameters": {}}]}',
            '[{"name": "Ada", "age": 36}]',
            "Sets like {1, 2} and dicts like {'a': 1}.",
            '<|python_tag|>brave_search.call(query="weather")',
            '{"parameters": {"a": 1}}',
        ],
    )
    def test_other_json_is_an_answer(self, text):
        assert parsed("llama3_json", text) == (text, [])

    def test_a_call_in_prose(self):
        assert parsed("llama3_json", 'So {x}: {"name": "f", "parameters": {}} it is.') == (
            "So {x}: it is.",
            [("f", "{}")],
        )

    def test_a_name_is_not_reported_before_its_arguments_begin(self):
        stream = get_tool_parser("llama3_json").stream()
        assert stream.feed('{"name": "f", ') == []
        assert [type(event) for event in stream.feed('"parameters": {')] == [ToolCallStart, ToolCallArguments]


class TestPythonic:
    @pytest.mark.parametrize(
        ("written", "value"),
        [
            ("1", 1),
            ("-1.5", -1.5),
            ("True", True),
            ("null", None),
            ("'it\\'s'", "it's"),
            ('"""a "b" c"""', 'a "b" c'),
            ("'a, b)]'", "a, b)]"),
            (r"'\d+'", r"\d+"),
            ("[1, (2, 'x'), []]", [1, [2, "x"], []]),
            ("{'a': {'b': [None]}}", {"a": {"b": [None]}}),
            ("'é\\n😀'", "é\n😀"),
            ("'\\ud83d'", "\ud83d"),
            ("1e999", "1e999"),
            ("today", "today"),
            ("1 + 2", "1 + 2"),
            ("__import__('os').system('true')", "__import__('os').system('true')"),
            ("{1: 2}", "{1: 2}"),
            ("b'x'", "b'x'"),
            ("a == b", "a == b"),
            ("-" * 5000 + "1", "-" * 5000 + "1"),
            ("9" * 5000, "9" * 5000),
            ("[" * 500 + "]" * 500, json.loads("[" * 500 + "]" * 500)),
            ("(" * 500 + "1" + ")" * 500, "(" * 500 + "1" + ")" * 500),
            ('{"a": "\\/", \'b\': True, "c": [null]}', {"a": "/", "b": True, "c": [None]}),
        ],
    )
    def test_values(self, written, value):
        content, [(name, arguments)] = parsed("pythonic", f"[tool.f(x={written})]")
        assert (content, name, json.loads(arguments)) == (None, "tool.f", {"x": value})

    def test_arguments_without_names_take_the_declared_ones(self):
        _, [(_, known), (_, unknown)] = parsed("pythonic", '[f("a", 2, flag=True), g(1)]')
        assert json.loads(known) == {"text": "a", "count": 2, "flag": True}
        assert json.loads(unknown) == {"argument_1": 1}

    def test_calls_stand_at_the_beginning_or_after_a_marker(self):
        assert parsed("pythonic", "See [f(x=1)].") == ("See [f(x=1)].", [])
        assert parsed("pythonic", "\n [f()] ") == (None, [("f", "{}")])
        assert parsed("pythonic", "Well. <|python_start|>[f()]<|python_end|>") == ("Well.", [("f", "{}")])

    def test_a_complete_argument_is_passed_on(self):
        stream = get_tool_parser("pythonic").stream()
        stream.feed("[f(a=1")
        assert stream.feed(", b='x") == [ToolCallArguments(0, '{"a": 1')]
        assert stream.finish() == []


class TestMistral:
    def test_ids_are_what_the_templates_take(self):
        _, calls = get_tool_parser("mistral").parse("[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS]{}")
        assert all(re.fullmatch("[a-zA-Z0-9]{9}", call.id) for call in calls)
        assert calls[0].id != calls[1].id

    def test_forms(self):
        text = 'Hm.[TOOL_CALLS]f{"a": 1}[TOOL_CALLS] g [ARGS] {} [TOOL_CALLS][{"name": "h", "arguments": {}}]'
        assert parsed("mistral", text) == ("Hm.", [("f", '{"a": 1}'), ("g", "{}"), ("h", "{}")])

    @pytest.mark.parametrize(
        "text", ["[TOOL_CALLS]", "[TOOL_CALLS]f", "[TOOL_CALLS]a b{}", "[TOOL_CALLS][1]", "[ARGS]{}"]
    )
    def test_text_that_is_no_call_is_content(self, text):
        assert parsed("mistral", text) == (text, [])


class TestQwen3Coder:
    @pytest.mark.parametrize(
        ("argument", "written", "value"),
        [
            ("text", "\nline 1\nline 2\n", "line 1\nline 2"),
            ("text", "7", "7"),
            ("text", '\n"quoted" \\ <b>\n', '"quoted" \\ <b>'),
            ("text", "", ""),
            ("text", "\n\nx\n\n", "\nx\n"),
            ("count", "\n7\n", 7),
            ("count", "7.0", 7),
            ("count", "seven", "seven"),
            ("ratio", "1.50", 1.5),
            ("ratio", "NaN", "NaN"),
            ("flag", "\nTrue\n", True),
            ("flag", "maybe", "maybe"),
            ("list", '["a", 1]', ["a", 1]),
            ("list", "[" * 100_000, "[" * 100_000),
            ("map", '{"a": {"b": null}}', {"a": {"b": None}}),
            ("undeclared", "7", "7"),
        ],
    )
    def test_values_have_the_declared_type(self, argument, written, value):
        text = f"<tool_call>\n<function=f>\n<parameter={argument}>{written}</parameter>\n</function>\n</tool_call>"
        content, [(name, arguments)] = parsed("qwen3_coder", text)
        assert (content, name, json.loads(arguments)) == (None, "f", {argument: value})

    def test_unions_take_the_first_type_that_fits(self):
        schema = {"anyOf": [{"type": "integer"}, {"type": ["string", "null"]}], "nullable": True}
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": schema}}}}]
        for written, value in (("7", 7), ("x", "x"), ("null", None)):
            _, [call] = get_tool_parser("qwen3_coder").parse(
                f"<function=f><parameter=x>{written}</parameter></function>", tools
            )
            assert json.loads(call.arguments) == {"x": value}

    def test_strings_are_passed_on_while_they_arrive(self):
        stream = get_tool_parser("qwen3_coder").stream(TOOLS)
        stream.feed("<tool_call><function=f><parameter=text>\n")
        assert stream.feed('say "hi"') == [ToolCallArguments(0, 'say \\"hi\\"')]
        assert stream.feed("\n</parameter><parameter=count>1") == [ToolCallArguments(0, '", "count": ')]
        assert stream.finish() == []

    def test_missing_closing_tags(self):
        text = "<function=f><parameter=text>a<parameter=count>1</function> ok <tool_call><function=g></tool_call>"
        assert parsed("qwen3_coder", text) == ("ok", [("f", '{"text": "a", "count": 1}'), ("g", "{}")])

    @pytest.mark.parametrize("text", ["<tool_call>x</tool_call>", "<function=>", "<function=a b>", "<function=f"])
    def test_text_that_is_no_call_is_content(self, text):
        assert parsed("qwen3_coder", text) == (text, [])


class TestDeepSeek:
    def test_a_tool_called_function(self):
        text = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
        assert parsed("deepseek_v3", text) == (None, [("function", "{}")])

    def test_without_arguments(self):
        text = "".join(
            f"<｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜>"
            for call in ("f<｜tool▁sep｜>", "function<｜tool▁sep｜>g\n")
        )
        assert parsed("deepseek_v3", text) == (None, [("f", "{}"), ("g", "{}")])

    @pytest.mark.parametrize(
        "text", ["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>f", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f"]
    )
    def test_text_that_is_no_call_is_content(self, text):
        assert parsed("deepseek_v3", text) == (text, [])


class TestGptOss:
    @pytest.mark.parametrize(
        ("text", "content", "reasoning", "calls"),
        [
            ("<|channel|>analysis<|message|>Hm", None, "Hm", []),
            ("<|channel|>final<|message|>Yes.<|return|>", "Yes.", None, []),
            (" to=functions.f<|channel|>commentary<|message|>{}<|call|>", None, None, [("f", "{}")]),
            ("<|channel|>commentary to=functions.f<|message|><|call|>", None, None, [("f", "{}")]),
            ("<|channel|>commentary to=functions.f <|cons", None, None, [("f", "")]),
            ("<|channel|>commentary to=functions.f", "", None, []),
            ("<|channel|>comm", "", None, []),
            ("<|start|>assistant<|channel|>analysis", "", None, []),
            ("<|message|>Yes", "Yes", None, []),
            ("<|channel|>x y\n", "<|channel|>x y\n", None, []),
            ("to=me or to=you", "to=me or to=you", None, []),
            ("<b>Yes</b>", "<b>Yes</b>", None, []),
            ("<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b", "b", "a", []),
        ],
    )
    def test_messages(self, text, content, reasoning, calls):
        message = read("gpt_oss", [text])
        assert (message.content, message.reasoning) == (content, reasoning)
        assert [(call.name, call.arguments) for call in message.tool_calls] == calls


def test_ids_are_unique_and_of_openais_form():
    text = '<tool_call>{"name": "f"}</tool_call>' * 50
    _, calls = get_tool_parser("hermes").parse(text)
    assert len({call.id for call in calls}) == 50
    assert all(re.fullmatch("call_[0-9a-f]{24}", call.id) for call in calls)


def test_tools_may_be_models():
    class Model:
        def model_dump(self):
            return TOOLS[1]

    _, [call] = get_tool_parser("qwen3_coder").parse("<function=f><parameter=count>7</parameter></function>", [Model()])
    assert call.arguments == '{"count": 7}'
