"""Tokenizers built from GGUF metadata."""

import math
import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from cvllm_jax.errors import ModelLoadError
from cvllm_jax.text import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


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
        ("dbrx", "1234 12 hello'S", ["123", "4", " ", "12", " ", "hello", "'S"]),
        ("falcon", "1234 12 hello", ["123", "4", " ", "12", " ", "hello"]),
        ("deepseek-llm", "1234 12 hello'S", ["1234", " ", "12", " ", "hello", "'", "S"]),
        ("qwen35", "1234 12 hello'S", ["1", "2", "3", "4", " ", "1", "2", " ", "hello", "'S"]),
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


def test_characters_merge_with_spaces_as_sentencepiece_writes_them(
    write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "h", "i", "▁", "hi", "▁hi", "\n", "\n\n"]
    types = [UNKNOWN, CONTROL, *[BYTE] * 256, *[NORMAL] * 7]
    keys = {"merges": ["h i", "▁ hi", "\n \n"], "unknown_token_id": 0, "bos_token_id": 1}
    tokenizer = Tokenizer.from_gguf(write_gguf(tmp_path / "x.gguf", "gemma4", tokens, types, **keys))
    assert pieces(tokenizer, "hi hi\n\nh") == ["hi", " hi", "\n\n", "h"]
    assert tokenizer.decode(tokenizer.encode(" é")) == " é"
    assert tokenizer.adds_bos


UNIGRAM = ["<pad>", "</s>", "<unk>", "▁", "▁he", "llo", "▁hello", "l", "o", "<", "/", "s", ">", "[PAD]"]
UNIGRAM_KEYS = {
    "scores": [0.0, 0.0, 0.0, -2.0, -3.0, -3.0, -7.0, -4.0, -4.0, -9.0, -9.0, -9.0, -9.0, -10000.0],
    "eos_token_id": 1,
    "unknown_token_id": 2,
    "padding_token_id": 0,
}


def unigram(write_gguf: Callable[..., Path], path: Path, **keys: object) -> Tokenizer:
    types = [CONTROL, CONTROL, UNKNOWN, *[NORMAL] * 10, UNUSED]
    return Tokenizer.from_gguf(write_gguf(path, "t5", UNIGRAM, types, **UNIGRAM_KEYS | keys))


def test_unigram_takes_the_likeliest_pieces(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    tokenizer = unigram(write_gguf, tmp_path / "x.gguf", remove_extra_whitespaces=True)
    names = lambda text: [tokenizer.token_name(token) for token in tokenizer.encode(text)]  # noqa: E731
    assert names("hello") == ["▁he", "llo"]  # -6 beats the whole word's -7
    assert names("  hello   llo ") == ["▁he", "llo", "▁", "llo"]
    assert names("hello漢字") == ["▁he", "llo", "<unk>"]
    assert names("</s>") == ["▁", "<", "/", "s", ">"]  # never the control token
    assert tokenizer.encode("hello</s>", allow_special=True)[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer.encode("hello llo")) == "hello llo"
    assert (tokenizer.frame, tokenizer.adds_bos) == (((), (1,)), False)


def test_unigram_keeps_spaces_unless_told_otherwise(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    tokenizer = unigram(write_gguf, tmp_path / "x.gguf", add_eos_token=False)
    assert tokenizer.decode(tokenizer.encode(" hello  llo ")) == " hello  llo "
    assert tokenizer.frame == ((), ())


@pytest.mark.parametrize("table", [
    b"\0\0", b"\xff\xff\xff\xff....", struct.pack("<II", 4, 0) + b"a\0",
    struct.pack("<I256I", 1024, 1 << 30, *[0] * 255) + b"a\0",
    struct.pack("<I256I", 1024, 0x100, *[0] * 255) + b"",
])  # fmt: skip
def test_tables_of_characters_that_point_outside(
    write_gguf: Callable[..., Path], tmp_path: Path, table: bytes
) -> None:
    with pytest.raises(ModelLoadError, match="the table of characters"):
        unigram(write_gguf, tmp_path / "x.gguf", precompiled_charsmap=list(table))


def test_word_pieces(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁hello", "▁he", "llo", "s", "▁,", "▁漢"]
    types = [CONTROL, NORMAL, CONTROL, CONTROL, *[NORMAL] * 6]
    keys = {"unknown_token_id": 1, "cls_token_id": 2, "seperator_token_id": 3, "padding_token_id": 0}
    tokenizer = Tokenizer.from_gguf(write_gguf(tmp_path / "x.gguf", "bert", tokens, types, **keys))
    assert tokenizer.encode("Hellós,  heLLO") == [4, 7, 8, 4]
    assert tokenizer.encode("hello [SEP] 漢字 hello" + "s" * 200) == [4, 1, 1, 1, 9, 1, 1]
    assert tokenizer.frame == ((2,), (3,))
    assert tokenizer.decode([2, 4, 7, 8, 3]) == "hellos,"
    cased = write_gguf(tmp_path / "y.gguf", "bert", tokens, types, **keys | {"normalizer.lowercase": False})
    assert Tokenizer.from_gguf(cased).encode("Hello hello") == [1, 4]
    keys = keys | {"bos_token_id": keys.pop("cls_token_id"), "add_bos_token": True}
    tokenizer = Tokenizer.from_gguf(write_gguf(tmp_path / "bos.gguf", "bert", tokens, types, **keys))
    assert (tokenizer.frame, tokenizer.adds_bos) == (((2,), (3,)), False)
    del keys["bos_token_id"]
    with pytest.raises(ModelLoadError, match="names no bos token"):
        Tokenizer.from_gguf(write_gguf(tmp_path / "z.gguf", "bert", tokens, types, **keys))


def test_the_spaces_after_control_tokens_of_phi3_belong_to_them(
    sentencepiece_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    plain = sentencepiece_gguf()
    assert len(Tokenizer.from_gguf(plain).encode("</s>\nw", allow_special=True)) == 4
    named = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(named, "phi3")
    reader = gguf.GGUFReader(plain)
    for field in reader.fields.values():
        if field.name.startswith("tokenizer."):
            of = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert len(Tokenizer.from_gguf(named).encode("</s>\nw", allow_special=True)) == 2


def test_a_token_that_ends_turns_is_control_whatever_its_type(
    write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    keys = {"merges": ["a a"], "pre": "gpt-2"}
    path = write_gguf(tmp_path / "x.gguf", "gpt2", ["a", "aa", "</s>"], [NORMAL, NORMAL, USER_DEFINED], **keys)
    assert Tokenizer.from_gguf(path).is_special(2)


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
    ({"pre": "kimi-k2"}, "'kimi-k2'.*supported are default, gpt-2"),
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


def test_a_token_that_is_there_twice(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    keys = {"merges": ["a b"], "pre": "gpt-2", "scores": [0.0] * 5, "unknown_token_id": 3}
    for kind in ("gpt2", "gemma4", "llama", "t5"):
        path = write_gguf(tmp_path / f"{kind}.gguf", kind, ["a", "b", "ab", "c", "a"], [NORMAL] * 5, **keys)
        with pytest.raises(ModelLoadError, match="has the token 'a' twice, as 0 and as 4"):
            Tokenizer.from_gguf(path)


def test_empty_tokens_are_places_that_nothing_encodes_to(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    keys = {"merges": ["a b"], "pre": "gpt-2"}
    path = write_gguf(tmp_path / "x.gguf", "gpt2", ["a", "", "b", "", "ab"], [NORMAL] * 5, **keys)
    tokenizer = Tokenizer.from_gguf(path)
    assert (tokenizer.encode("abb"), tokenizer.decode([1, 0, 3]), tokenizer.vocab_size) == ([4, 2], "a", 5)


@pytest.mark.parametrize(("scores", "message"), [
    ([0.0, math.nan], "a score that is no finite number"),
    ([0.0], "2 tokens but 1 scores"),
])  # fmt: skip
def test_bad_scores(
    write_gguf: Callable[..., Path], tmp_path: Path, scores: list[float], message: str
) -> None:
    path = write_gguf(tmp_path / "x.gguf", "llama", ["a", "b"], [NORMAL] * 2, scores=scores)
    with pytest.raises(ModelLoadError, match=message):
        Tokenizer.from_gguf(path)


@pytest.mark.parametrize(("tokens", "message"), [
    (["a" * length for length in range(1, 4000)], "pieces of up to 3999 characters, too long to find their parts"),
    (["a", "b" * 5_000_000], "a token of 5000000 characters"),
    ([f"<{number}>" for number in range(70_000)], "70000 control and user-defined tokens; the limit is 65536"),
])  # fmt: skip
def test_vocabularies_that_would_take_minutes(
    write_gguf: Callable[..., Path], tmp_path: Path, tokens: list[str], message: str
) -> None:
    types = [CONTROL if text.startswith("<") else NORMAL for text in tokens]
    path = write_gguf(tmp_path / "x.gguf", "llama", tokens, types, scores=[0.0] * len(tokens))
    start = time.process_time()
    with pytest.raises(ModelLoadError, match=message):
        Tokenizer.from_gguf(path)
    assert time.process_time() - start < 5


def test_a_panic_of_the_library_is_a_refusal(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", "gpt2", ["a"], [NORMAL], pre="gpt-2", merges=["a a"])
    with pytest.raises(ModelLoadError, match="is inconsistent"):
        Tokenizer.from_gguf(path)


def test_other_vocabularies_are_refused_by_name(
    write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "x.gguf", "rwkv", ["a"], [NORMAL])
    with pytest.raises(ModelLoadError, match=r"kind 'rwkv'; supported are gpt2, gemma4, llama, t5, bert"):
        Tokenizer.from_gguf(path)
    path = write_gguf(tmp_path / "y.gguf", "gpt2", ["a"], [NORMAL, CONTROL], pre="gpt-2", merges=["a a"])
    with pytest.raises(ModelLoadError, match="1 tokens but 2 token types"):
        Tokenizer.from_gguf(path)
    path = write_gguf(tmp_path / "z.gguf", "llama", ["a"], [NORMAL])
    with pytest.raises(ModelLoadError, match="1 tokens but 0 scores"):
        Tokenizer.from_gguf(path)
