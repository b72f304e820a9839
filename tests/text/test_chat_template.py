"""Rendering messages."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from cvllm_jax.errors import ModelLoadError, TokenizationError
from cvllm_jax.text import ChatTemplate, Tokenizer

HI = [{"role": "user", "content": "hi"}]


def render(source: str, messages: Any = HI, tools: Any = None, **kwargs: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, tools, **kwargs)


class TestConventions:
    def test_blocks_are_trimmed(self) -> None:
        assert render("  {% if true %}\n  x\n  {% endif %}\ny") == "  x\ny"

    def test_variables(self) -> None:
        assert render("{{ bos_token }}{{ messages[0].content }}{{ add_generation_prompt }}") == "<s>hiTrue"
        assert render("{{ tools is none }}{{ documents is none }}", tools=[]) == "TrueTrue"
        assert render("{{ enable_thinking }}{{ bos_token }}", enable_thinking=False, bos_token="!") == "False!"

    def test_any_name_is_a_variable(self) -> None:
        """Clients send them; a Python name in between must not matter."""
        assert render("{{ hi }}{{ cls }}", **{"self": 1, "cls": 2, "": 3, "hi": 4}) == "42"

    def test_loop_controls(self) -> None:
        source = (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}"
            "{{ i }}{% endfor %}"
        )
        assert render(source) == "02"

    def test_loop_variables_survive_the_counting(self) -> None:
        source = (
            "{% for i in [3, 4, 5] if i != 4 %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
            "{{ loop.previtem }} {% endfor %}"
        )
        assert render(source) == "1/2False 2/2True3 "
        assert render("{% for x in [[1, [2]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}") == "12"

    def test_macros_call_blocks_and_namespaces(self) -> None:
        source = (
            "{% macro m(x) %}[{{ x }}{{ caller() }}]{% endmacro %}{% set ns = namespace(n=1) %}"
            "{% for i in range(2) %}{% set ns.n = ns.n + i %}{% endfor %}{% call m(ns.n) %}!{% endcall %}"
        )
        assert render(source) == "[2!]"

    def test_generation_tag(self) -> None:
        assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b") == "ahib"

    def test_tojson(self) -> None:
        value = {"b": "é<&>'", "a": [1, None, True, 1.5]}
        assert render("{{ v|tojson }}", v=value) == json.dumps(value, ensure_ascii=False)
        assert render("{{ v|tojson(ensure_ascii=true) }}", v=value) == json.dumps(value)
        source = "{{ v|tojson(indent=2, separators=(',', ':'), sort_keys=true) }}"
        assert render(source, v=value) == json.dumps(
            value, ensure_ascii=False, indent=2, separators=(",", ":"), sort_keys=True
        )

    def test_strftime_now(self) -> None:
        assert len(render("{{ strftime_now('%d %b %Y') }}")) == len("22 Nov 2026")
        assert render("{{ strftime_now('%Y') }}", strftime_now=lambda pattern: f"<{pattern}>") == "<%Y>"

    @pytest.mark.parametrize(("source", "expected"), [
        ("{{ 'a' ~ 1 ~ none }}", "a1None"),
        ("{{ '%s-%05.1f' % ('a', 2.5) }}", "a-002.5"),
        ("{{ '{} {a:>3}'.format(1, a='x') }}", "1   x"),
        ("{{ ' a,b '.strip().split(',')|join('+') }}", "a+b"),
        ("{{ 'abcabc'.replace('b', 'x', 1)|upper }}", "AXCABC"),
        ("{{ messages|map(attribute='role')|list }}", "['user']"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
        ("{{ none|default('x', true) ~ (nothing|selectattr('a')|list) }}", "x[]"),
        ("{{ [[1], [2]]|sum(start=[]) }}", "[1, 2]"),
        ("{{ {'a': 1}.items()|list }}{{ {'a': 1}|items|list }}", "[('a', 1)][('a', 1)]"),
        ("{{ [3, 1, 2]|sort|first }}{{ [1, 2, 3][::-1] }}{{ 'hi' in messages[0].content }}", "1[3, 2, 1]True"),
        ("{{ dict(a=1) }}{{ '\\n'.join(['x', 'y']) }}{{ 7 // 2 }}{{ 2 ** 10 }}", "{'a': 1}x\ny31024"),
        ("{{ 'x' in {'x': 1} and 1 < 2 < 3 }}{{ '<b>'|e }}{{ '<b>'|safe }}", "True&lt;b&gt;<b>"),
    ])  # fmt: skip
    def test_expressions(self, source: str, expected: str) -> None:
        assert render(source) == expected


class TestMessages:
    def test_arguments_of_tool_calls_become_objects(self) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
        messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
        source = "{{ messages[0].tool_calls[0].function.arguments.items()|list }}{{ messages[0].content }}"
        assert render(source, messages) == "[('a', 'é')]None"
        assert call["function"]["arguments"] == '{"a": "é"}'  # the caller's own stays

    @pytest.mark.parametrize(("arguments", "expected"), [
        ("", "{}"), ("{broken", '"{broken"'), ("[1]", '"[1]"'), ({"a": 1}, '{"a": 1}'), ("[" * 100_000, None),
    ])  # fmt: skip
    def test_arguments_that_are_no_object(self, arguments: Any, expected: str | None) -> None:
        messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
        rendered = render("{{ messages[0].tool_calls[0].function.arguments|tojson }}", messages)
        assert rendered == (json.dumps(arguments) if expected is None else expected)

    @pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
    def test_reasoning_has_every_name(self, name: str) -> None:
        message = {"role": "assistant", "content": "x", name: "why"}
        source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }} {{ messages[0].reasoning }}"
        assert render(source, [message]) == "why why why"

    def test_objects_with_model_dump(self) -> None:
        class Message(BaseModel):
            role: str
            content: str | None = None
            name: str | None = None

        assert render("{{ messages[0] }}", [Message(role="user", content="x")]) == "{'role': 'user', 'content': 'x'}"

    @pytest.mark.parametrize(("messages", "text"), [
        ("hi", "messages must be a list of messages, not a str"),
        (None, "not a NoneType"),
        ([1], r"messages\[0\] must be an object, not 1"),
        ([{"content": b"x"}], r"messages\[0\].content is a bytes"),
        ([{"content": SimpleNamespace()}], r"messages\[0\].content is a SimpleNamespace"),
        ([{1: "x"}], "the key 1, not a string"),
    ])  # fmt: skip
    def test_what_is_no_message(self, messages: Any, text: str) -> None:
        with pytest.raises(TokenizationError, match=text) as caught:
            render("", messages)
        assert caught.value.param == "messages"

    def test_deep_nesting(self) -> None:
        value: Any = []
        for _ in range(500):
            value = [value]
        with pytest.raises(TokenizationError, match="nested more than 128 deep"):
            render("{{ messages }}", [{"content": value}])


class TestErrors:
    def test_a_refusal_says_why(self) -> None:
        with pytest.raises(TokenizationError) as caught:
            render("{{ raise_exception('Roles must\nalternate') }}")
        assert str(caught.value) == "the chat template refuses these messages: Roles must alternate"

    @pytest.mark.parametrize(("source", "text"), [
        ("{% if %}", "has an error in line 1: Expected an expression"),
        ("\n\n{{ x|nosuch }}", "error in line 3: No filter named 'nosuch'"),
        ("{% endfor %}", "error in line 1: Encountered unknown tag 'endfor'"),
        (None, "must be a string, not a NoneType"),
    ])  # fmt: skip
    def test_broken_templates(self, source: Any, text: str) -> None:
        with pytest.raises(TokenizationError, match=text):
            ChatTemplate(source)

    @pytest.mark.parametrize(("source", "text"), [
        ("{{ a.b.c }}", "failed because 'a' is undefined"),
        ("{{ 1 / 0 }}", "failed with a ZeroDivisionError: division by zero"),
        ("{{ messages + 1 }}", "failed with a TypeError"),
        ("{% include 'other' %}", "no loader"),
    ])  # fmt: skip
    def test_templates_that_fail(self, source: str, text: str) -> None:
        with pytest.raises(TokenizationError, match=text) as caught:
            render(source)
        assert "\n" not in str(caught.value)

    def test_the_template_works_on_after_a_failure(self) -> None:
        template = ChatTemplate("{{ messages[0].content + 'x' }}")
        with pytest.raises(TokenizationError):
            template.render([{"content": 1}])
        assert template.render(HI) == "hix"


def checkpoint(path: Path, kind: str = "safetensors") -> Any:
    return SimpleNamespace(path=path, gguf_metadata=path if kind == "gguf" else None)


class TestFromCheckpoint:
    @pytest.fixture
    def tokenizer(self, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
        return tokenizers["byte-level"]

    def test_no_template(self, tokenizer: Tokenizer, tmp_path: Path, byte_level_gguf: Any) -> None:
        assert ChatTemplate.from_checkpoint(checkpoint(tmp_path), tokenizer) is None
        (tmp_path / "tokenizer_config.json").write_text("{}")
        assert ChatTemplate.from_checkpoint(checkpoint(tmp_path), tokenizer) is None
        assert ChatTemplate.from_checkpoint(checkpoint(byte_level_gguf(), "gguf"), tokenizer) is None

    def test_gguf(self, tokenizer: Tokenizer, byte_level_gguf: Any) -> None:
        path = byte_level_gguf(chat_template="{{ bos_token }}g")
        template = ChatTemplate.from_checkpoint(checkpoint(path, "gguf"), tokenizer)
        assert template is not None
        assert template.render(HI) == "<|im_start|>g"
        assert template.encode(HI)[0] == tokenizer.bos_token_id

    def test_a_file_wins_over_the_configuration(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "of images"}))
        assert ChatTemplate.from_checkpoint(checkpoint(tmp_path), tokenizer).render(HI) == "of images"
        config = tmp_path / "tokenizer_config.json"
        config.write_text(json.dumps({"chat_template": "old"}))
        assert ChatTemplate.from_checkpoint(checkpoint(tmp_path), tokenizer).render(HI) == "old"
        (tmp_path / "chat_template.jinja").write_text("new")
        assert ChatTemplate.from_checkpoint(checkpoint(tmp_path), tokenizer).render(HI) == "new"

    def test_named_templates(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools[0].name }}"}]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
        template = ChatTemplate.from_checkpoint(checkpoint(tmp_path), tokenizer)
        assert template.render(HI) == "plain"
        assert template.render(HI, tools=[{"name": "f"}]) == "f"

    @pytest.mark.parametrize("content", ["{", '{"chat_template": 1}', '{"chat_template": [{"name": 1}]}'])
    def test_damaged(self, tokenizer: Tokenizer, tmp_path: Path, content: str) -> None:
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(ModelLoadError, match=r"tokenizer_config\.json"):
            ChatTemplate.from_checkpoint(checkpoint(tmp_path), tokenizer)

    def test_a_hostile_template_is_an_error_when_used(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_text("{{ 'a' * 10 ** 10 }}")
        template = ChatTemplate.from_checkpoint(checkpoint(tmp_path), tokenizer)
        with pytest.raises(TokenizationError, match="takes more than 1,000,000 steps"):
            template.render(HI)
