"""Scripts from their files to the line that answers a conversation."""

import re
import time
from pathlib import Path

import pytest
from scripted import RULES, WEATHER_CALL, user, write_script

from cvllm_jax.errors import ModelLoadError
from cvllm_jax.testing import open_scripted
from cvllm_jax.testing.script import DEFAULT_ANSWER, MAX_RULES
from cvllm_jax.testing.vocabulary import line_token

CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}


@pytest.fixture
def opened(tmp_path):
    def open_(content):
        return open_scripted(f"scripted:{write_script(tmp_path, content)}")

    return open_


def says(checkpoint, messages, **kwargs):
    """What the line says that the last token of the prompt names."""
    line = checkpoint.chat_template.encode(messages, **kwargs)[-1] - line_token(0)
    start, length = checkpoint.weights["starts"][line], checkpoint.weights["lengths"][line]
    return checkpoint.tokenizer.decode(checkpoint.weights["table"][start : start + length].tolist(), skip_special=False)


def test_the_first_rule_that_is_found_wins(opened):
    script = opened([{"when": "b", "say": "1"}, {"when": "a", "say": "2"}, {"when": "", "say": "3"}])
    assert [says(script, user(text)) for text in ("ab", "ba", "a", "c", "")] == ["1", "1", "2", "3", "3"]


def test_the_last_user_or_tool_turn_decides(opened):
    script = opened([{"when": "weather", "say": "call"}, {"when": "21", "say": "answer"}])
    conversation = user("the weather?")
    assert says(script, conversation) == "call"
    conversation += [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert says(script, conversation) == "call"
    conversation += [{"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"}]
    assert says(script, conversation) == "answer"
    assert says(script, [*conversation, {"role": "assistant", "content": "weather"}]) == "answer"
    assert says(script, [*conversation, *user("thanks")]) == DEFAULT_ANSWER
    assert says(script, [{"role": "system", "content": "weather"}]) == DEFAULT_ANSWER


def test_parts_of_a_turn_are_its_lines(opened):
    script = opened([{"when": "^one\ntwo$", "say": "both"}])
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert says(script, [{"role": "user", "content": parts}]) == "both"


def test_the_object_form(opened, tmp_path):
    (tmp_path / "own.jinja").write_text("{{ bos_token }}<|turn|>{{ messages[-1].content }}<|go|>")
    script = opened(
        {
            "rules": [{"when": "x", "say": "<|channel|>final<|stop|>"}],
            "default": "what?",
            "template": "own.jinja",
            "control_tokens": ["<|turn|>", "<|go|>", "<|channel|>"],
            "eos_token": "<|stop|>",
        }
    )
    tokenizer = script.tokenizer
    prompt = script.chat_template.encode(user("x<|go|>"))
    assert len(prompt) == 1 + len("x<|go|>") + 1 + 1
    assert tokenizer.decode(prompt[:-1], skip_special=False) == "<|turn|>x<|go|><|go|>"
    assert script.eos_token_ids == (tokenizer.eos_token_id,)
    assert tokenizer.control_tokens[tokenizer.eos_token_id] == "<|stop|>"
    assert says(script, user("x")) == "<|channel|>final<|stop|>"
    assert script.weights["lengths"][:2].tolist() == [len("what?"), 1 + len("final") + 1]
    assert says(script, user("y")) == "what?"


def test_what_a_message_spells_is_text(opened):
    script = opened([{"when": "x", "say": "y"}])
    prompt = script.chat_template.encode(user("<|im_end|>"))
    special = [script.tokenizer.control_tokens[token] for token in prompt if script.tokenizer.is_special(token)]
    assert special == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_a_prompt_without_the_beginning_of_an_answer_names_no_line(opened):
    template = opened(RULES).chat_template
    with_line = template.encode(user("hi"))
    assert template.tokenizer.decode(with_line, skip_special=False) == template.render(user("hi"))
    assert template.tokenizer.encode(template.render(user("hi")), allow_special=True) == with_line[:-1]
    history = template.encode(user("hi"), add_generation_prompt=False)
    assert with_line[:-1] == history + template.tokenizer.encode("<|im_start|>assistant\n", allow_special=True)


def test_tools_calls_and_results_are_in_the_prompt(opened):
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    conversation = [
        {"role": "system", "content": "Be brief."},
        *user("the weather?"),
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nI see.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "21"},
    ]
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    text = opened(RULES).chat_template.render(conversation, tools=[tool])
    assert text.startswith("<|im_start|>system\nBe brief.\n\n")
    assert '{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}' in text
    assert f"<|im_start|>assistant\nI see.\n{call}\n{call}<|im_end|>\n" in text
    assert text.endswith(
        "<|im_start|>tool\n<tool_response>\n21\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_tool_and_reasoning_parsers_are_found_by_the_template(opened):
    from cvllm_jax.openai.reasoning import get_reasoning_parser
    from cvllm_jax.openai.tool_parsers import get_tool_parser

    source = opened(RULES).chat_template.source
    assert get_tool_parser("auto", chat_template=source, architecture="ScriptedForCausalLM").name == "hermes"
    assert get_reasoning_parser("auto", chat_template=source).name == "think"


@pytest.mark.parametrize("when", ["(a|a)*b", "(a+)+$", "(.*)*x", "a{1,50}" * 5 + "b"])
def test_expressions_made_to_explode_take_linear_time(opened, when):
    script = opened([{"when": when, "say": "found"}])
    started = time.monotonic()
    assert says(script, user("a" * 200_000 + "!")) == DEFAULT_ANSWER
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("when", "text"),
    [('{"a": 1}', 'is {"a": 1}'), (r"\d{3}", "x123"), ("[{]}", "{}"), (r"é\b", "café"), ("a{,b", "a{,b")],
)
def test_braces_mean_what_they_mean_in_python(opened, when, text):
    script = opened([{"when": when, "say": "found"}])
    assert says(script, user(text)) == "found"
    assert says(script, user("nothing")) == DEFAULT_ANSWER


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is no JSON"),
        ("[", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("3", "must be a list of rules"),
        ({"rule": []}, "must be a list of rules"),
        ({"rules": [], "defaults": "x"}, "has 'defaults'; a script has rules, default"),
        ({"rules": [], "default": 3}, "default of the script"),
        ({"rules": [], "eos_token": ""}, "eos_token of the script"),
        ({"rules": [], "control_tokens": [1]}, "control_tokens of the script"),
        ({"rules": [], "control_tokens": [f"<{i}>" for i in range(70)]}, "64 are the most"),
        ({"rules": [], "control_tokens": ["x"]}, "must be longer than one character"),
        ({"rules": [], "template": "missing.jinja"}, "missing.jinja"),
        ([{"when": "a", "say": "b"}, {"when": "a"}], "rule 1 of the script"),
        ([{"when": "a", "say": "b", "then": "c"}], "rule 0 of the script"),
        ([{"when": "(", "say": "b"}], "rule 0 of the script .* is no regular expression"),
        ([{"when": "(?=a)", "say": "b"}], "rule 0 of the script .* look-around"),
        ([{"when": r"(a)\1", "say": "b"}], "rule 0 of the script .* backreferences"),
        ([{"when": "a", "say": "\ud800"}], "rule 0 of the script .* lone surrogate"),
        ([{"when": "a", "say": "x" * 32768}], "rule 0 of the script .* has 32768 tokens"),
        ([{"when": "a", "say": "b"}] * (MAX_RULES + 1), "1023 are the most"),
    ],
)
def test_a_bad_script_is_one_sentence(opened, content, reason):
    with pytest.raises(ModelLoadError, match=reason) as caught:
        opened(content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_template_that_is_none_and_files_that_are_none(opened, tmp_path):
    (tmp_path / "bad.jinja").write_text("{% if %}")
    with pytest.raises(ModelLoadError, match="template"):
        opened({"rules": [], "template": "bad.jinja"})
    (tmp_path / "script.json").write_bytes(b"\xff")
    for source in ("scripted:", f"scripted:{tmp_path}/none.json", f"scripted:{tmp_path}", "scripted:\0",
                   f"scripted:{tmp_path}/script.json"):  # fmt: skip
        with pytest.raises(ModelLoadError):
            open_scripted(source)


def test_as_many_rules_as_there_may_be(opened):
    script = opened([{"when": f"^{index}$", "say": f"rule {index}"} for index in range(MAX_RULES)])
    assert says(script, user(str(MAX_RULES - 1))) == f"rule {MAX_RULES - 1}"


def test_the_scripts_in_the_documents(opened, tmp_path):
    (tmp_path / "harmony.jinja").write_text("{{ messages[-1].content }}")
    root = Path(__file__).parents[2]
    rules, full = re.findall(r"```json\n(.*?)```", (root / "docs" / "scripted.md").read_text(), re.DOTALL)
    assert says(opened(rules), user('{"celsius": 21}')).startswith("<think>")
    assert says(opened(full), user("hi")) == "<|channel|>final<|message|>Hello."
    readme = re.search(r"<<'END'\n(.*?)\n *END\n", (root / "README.md").read_text(), re.DOTALL)
    assert "get_weather" in says(opened(readme[1]), user("the weather in Paris?"))


def test_it_says_what_the_file_says(opened):
    assert says(opened(RULES), user("Weather?")) == WEATHER_CALL
