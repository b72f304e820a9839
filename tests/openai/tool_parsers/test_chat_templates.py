"""The parser that is found for a chat template reads what the template writes.

``CVLLM_CONFORMANCE`` names a folder with ``chat_templates/`` of other projects.
"""

import json
import os
from pathlib import Path

import pytest

from cvllm_jax.errors import ConfigError
from cvllm_jax.openai import detect_tool_parser, get_tool_parser
from cvllm_jax.openai.reasoning import detect_reasoning_parser
from cvllm_jax.openai.tool_parsers import TOOL_PARSERS
from cvllm_jax.text import ChatTemplate

CALLS = [("get_weather", {"city": "Zürich", "days": 3}), ("get_weather", {"city": "Bern", "days": 1})]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS}}]

FOUND = {
    "qwen3.jinja": "hermes",
    "template_minicpmv45.jinja": "hermes",
    "tool_chat_template_deepseekv3.jinja": "deepseek_v3",
    "tool_chat_template_gemma3_pythonic.jinja": "pythonic",
    "tool_chat_template_glm4.jinja": "glm45",
    "tool_chat_template_granite.jinja": "granite",
    "tool_chat_template_hermes.jinja": "hermes",
    "tool_chat_template_llama3.1_json.jinja": "llama3_json",
    "tool_chat_template_llama3.2_pythonic.jinja": "pythonic",
    "tool_chat_template_llama4_json.jinja": "llama3_json",
    "tool_chat_template_mistral.jinja": "mistral",
    "tool_chat_template_phi4_mini.jinja": "phi4_mini",
    "tool_chat_template_qwen3coder.jinja": "qwen3_coder",
    "tool_chat_template_toolace.jinja": "pythonic",
    "tool_chat_template_xlam_llama.jinja": "llama3_json",
}
#: These write calls otherwise than they ask the model to: without quotes, without the marker, or not at all.
NOT_AS_ASKED = {"glm4", "gemma3_pythonic", "llama3.2_pythonic", "toolace", "phi4_mini"}
ONE_CALL_ONLY = {"llama3.1_json"}


def templates() -> Path:
    if "CVLLM_CONFORMANCE" not in os.environ:
        pytest.skip("CVLLM_CONFORMANCE names no folder with chat templates")
    return Path(os.environ["CVLLM_CONFORMANCE"]) / "chat_templates"


def assistant(calls):
    made = [
        {"id": f"callid{index:03}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


def test_parsers_are_found_by_the_template():
    found = {path.name: detect_tool_parser(path.read_text(encoding="utf-8")) for path in templates().glob("*.jinja")}
    assert {name: parser for name, parser in found.items() if parser} == FOUND


@pytest.mark.parametrize("name", FOUND)
def test_what_a_template_writes_is_read_back(name):
    source = (templates() / name).read_text(encoding="utf-8")
    short = name.removeprefix("tool_chat_template_").removesuffix(".jinja")
    if short in NOT_AS_ASKED:
        pytest.skip("writes calls otherwise than it asks the model to")
    calls = CALLS[:1] if short in ONE_CALL_ONLY else CALLS
    user = {"role": "user", "content": "The weather?"}
    template = ChatTemplate(source, {"bos_token": "", "eos_token": ""})
    prompt = template.render([user], TOOLS, True)
    whole = template.render([user, assistant(calls)], TOOLS, False)
    answer = next((at for at, pair in enumerate(zip(prompt, whole)) if len(set(pair)) > 1), len(prompt))
    _, found = get_tool_parser("auto", chat_template=source).parse(whole[answer:], TOOLS)
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls


@pytest.mark.parametrize(
    ("markup", "name"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("{{ '<tool_call><function=' }}<parameter=", "qwen3_coder"),
        ("<tool_call>{{ name }}<arg_key>", "glm45"),
        ("{{ '<|channel|>' }}{{ '<|message|>' }}", "gpt_oss"),
        ("{{ message.content }}", None),
        ("", None),
        (None, None),
    ],
)
def test_markup_in_the_template_decides(markup, name):
    assert detect_tool_parser(markup, "LlamaForCausalLM") == name


def test_the_architecture_decides_where_there_is_no_markup():
    template = "{% for tool in tools %}{{ tool }}{% endfor %}"
    assert detect_tool_parser(template, "LlamaForCausalLM") == "llama3_json"
    assert detect_tool_parser(template, {"architectures": ["MistralForCausalLM"]}) == "mistral"
    assert detect_tool_parser(template, {"architectures": None}) is None
    assert detect_tool_parser(template) is None


def test_parsers_go_by_name():
    assert [get_tool_parser(name).name for name in TOOL_PARSERS] == list(TOOL_PARSERS)
    assert get_tool_parser("harmony").name == "gpt_oss"
    with pytest.raises(ConfigError, match="no tool parser 'nothing'; there are auto, hermes, "):
        get_tool_parser("nothing")
    with pytest.raises(ConfigError, match="the checkpoint has no response_template"):
        get_tool_parser("response_template")
    with pytest.raises(ConfigError, match="no known tool call format"):
        get_tool_parser("auto", chat_template="{{ messages }}")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '<think>\n\n</think>' }}", "think"),
        ("[THINK]{{ text }}[/THINK]", "mistral"),
        ("<|channel|>analysis<|message|>", "gpt_oss"),
        ("{{ messages }}", None),
        (None, None),
    ],
)
def test_reasoning_is_found_by_the_template(template, name):
    assert detect_reasoning_parser(template) == name
