"""Every pre-tokenizer against llama.cpp (tests/golden/make_pre_tokenizers.py)."""

import json
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from cvllm_jax.text import Tokenizer
from cvllm_jax.text.pre_tokenizers import PRE_TOKENIZERS

GOLDENS = json.loads((Path(__file__).parents[1] / "golden" / "pre_tokenizers.json").read_text(encoding="utf-8"))
YOUNGER = {"glm5"}
"""Names that the llama.cpp of the goldens does not know."""
CASED = ("tekken", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2")


def differs(pre: str, text: str) -> bool:
    """Whether llama.cpp departs from the models' own tokenizers, which are followed here."""
    if PRE_TOKENIZERS[pre].composes:  # llama.cpp leaves characters as they are
        return unicodedata.normalize("NFC", text) != text
    if pre in CASED:  # it knows the case of Latin letters alone
        return not text.isascii()
    if pre in ("deepseek-llm", "deepseek-coder"):  # it has no ideographic space in ranges of characters
        return any(character.isspace() and not character.isascii() for character in text)
    return False


@pytest.mark.parametrize("pre", sorted(GOLDENS["ids"]))
def test_tokens_are_those_of_llama_cpp(write_gguf: Callable[..., Path], tmp_path: Path, pre: str) -> None:
    types = [1] * len(GOLDENS["tokens"])
    path = write_gguf(tmp_path / "x.gguf", "gpt2", GOLDENS["tokens"], types, pre=pre, merges=GOLDENS["merges"])
    tokenizer = Tokenizer.from_gguf(path)
    for text, digest in zip(GOLDENS["texts"], GOLDENS["ids"][pre], strict=True):
        if not differs(pre, text):
            ids = tokenizer.encode(text)
            pieces = [tokenizer.token_bytes(token) for token in ids]
            assert f"{zlib.crc32(' '.join(map(str, ids)).encode()):08x}" == digest, (text, pieces)


def test_no_name_is_without_a_golden() -> None:
    assert set(PRE_TOKENIZERS) - YOUNGER == set(GOLDENS["ids"])
    assert PRE_TOKENIZERS["glm5"] is PRE_TOKENIZERS["glm4"]
