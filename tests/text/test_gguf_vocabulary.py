"""Tokenizers built from GGUF metadata."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cvllm_jax.errors import ModelLoadError
from cvllm_jax.text import Tokenizer

NORMAL, CONTROL = 1, 3


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_bytes(token).decode() for token in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "1234 12 hello wor'S", ["1234", " ", "12", " ", "hello", " wor", "'", "S"]),
        ("smollm", "1234 12 hello", ["1", "2", "3", "4", " ", "1", "2", " ", "hello"]),
        ("llama-bpe", "1234 12 hello'S", ["123", "4", " ", "12", " ", "hello", "'S"]),
        ("llama3", "1234", ["123", "4"]),
        ("qwen2", "1234 12 hello'S", ["1", "2", "3", "4", " ", "1", "2", " ", "hello", "'S"]),
        ("stablelm2", "1234 hello'S", ["1", "2", "3", "4", " ", "hello", "'S"]),
        ("glm4", "1234 12 hello'S", ["123", "4", " ", "12", " ", "hello", "'S"]),
    ],
)
def test_pre_tokenizers_differ_in_digits_and_contractions(
    byte_level_gguf: Callable[..., Path], pre: str, text: str, expected: list[str]
) -> None:
    assert pieces(Tokenizer.from_gguf(byte_level_gguf(pre)), text) == expected


def test_qwen2_composes_characters(byte_level_gguf: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level_gguf("qwen2"))
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


def test_sentencepiece_merges_the_highest_score_first(sentencepiece_gguf: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece_gguf())
    assert pieces(tokenizer, "hello") == [" hello"]
    assert pieces(tokenizer, "  w") == ["  ", " w"]
    assert pieces(tokenizer, "helloo") == [" hello", "o"]


def test_sentencepiece_spells_unknown_characters_in_bytes(sentencepiece_gguf: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece_gguf())
    ids = tokenizer.encode("漢é")
    assert [tokenizer.token_bytes(token) for token in ids] == [b" ", b"\xe6", b"\xbc", b"\xa2", "é".encode()]
    assert tokenizer.decode(ids) == "漢é"


def test_sentencepiece_without_a_space_in_front(sentencepiece_gguf: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece_gguf(add_space_prefix=False))
    assert pieces(tokenizer, "hello") == ["hello"]
    assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"


def test_control_and_user_defined_tokens(byte_level_gguf: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level_gguf())
    assert dict(tokenizer.special_tokens) == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert tokenizer.eos_token_id == tokenizer.vocab_size - 1
    assert tokenizer.encode("<|im_end|>", allow_special=True) == [tokenizer.eos_token_id]
    assert tokenizer.decode(tokenizer.encode("<|im_end|>")) == "<|im_end|>"
    # What a file defines without marking it as control is part of the vocabulary of text.
    assert len(tokenizer.encode("<tool>")) == 1
    assert not tokenizer.is_special(tokenizer.encode("<tool>")[0])


def test_a_token_named_as_end_is_control_whatever_its_type(
    write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_gguf(
        tmp_path / "x.gguf", "gpt2", ["a", "<end>"], [NORMAL, NORMAL], merges=["a a"], pre="gpt-2"
    )
    with pytest.raises(ModelLoadError, match="inconsistent"):  # the merge makes a token that is not there
        Tokenizer.from_gguf(path)
    path = write_gguf(
        tmp_path / "y.gguf", "gpt2", ["a", "aa", "<end>"], [NORMAL] * 3, merges=["a a"], pre="gpt-2", eot_token_id=2
    )
    assert Tokenizer.from_gguf(path).is_special(2)


@pytest.mark.parametrize(("pre", "keys", "expected"), [
    ("gpt-2", {}, False),
    ("llama-bpe", {}, True),
    ("llama-bpe", {"add_bos_token": False}, False),
    ("gpt-2", {"add_bos_token": True}, True),
])  # fmt: skip
def test_bos_is_declared_not_added(
    byte_level_gguf: Callable[..., Path], pre: str, keys: dict[str, bool], expected: bool
) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level_gguf(pre, **keys))
    assert tokenizer.adds_bos is expected
    assert tokenizer.bos_token_id not in tokenizer.encode("hello", allow_special=True)


@pytest.mark.parametrize(("keys", "message"), [
    ({"pre": "falcon"}, "'falcon'.*supported are gpt-2, phi-2"),
    ({"merges": ["h e", "x"]}, "the merge 'x'"),
    ({"merges": ["h e", "he zz"]}, "inconsistent"),
    ({"eos_token_id": 10**6}, "eos_token_id .* is 1000000; it has"),
    ({"add_bos_token": "yes"}, "add_bos_token .* wrong type, str"),
])  # fmt: skip
def test_bad_byte_level_vocabularies(
    byte_level_gguf: Callable[..., Path], keys: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        Tokenizer.from_gguf(byte_level_gguf(**keys))


def test_other_vocabularies_are_refused_by_name(
    write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "x.gguf", "bert", ["a"], [NORMAL])
    with pytest.raises(ModelLoadError, match=r"kind 'bert'; supported are gpt2 .* and llama"):
        Tokenizer.from_gguf(path)
    path = write_gguf(tmp_path / "y.gguf", "gpt2", ["a"], [NORMAL, CONTROL], pre="gpt-2", merges=["a a"])
    with pytest.raises(ModelLoadError, match="1 tokens but 2 token types"):
        Tokenizer.from_gguf(path)
    path = write_gguf(tmp_path / "z.gguf", "llama", ["a"], [NORMAL])
    with pytest.raises(ModelLoadError, match="1 tokens but 0 scores"):
        Tokenizer.from_gguf(path)
