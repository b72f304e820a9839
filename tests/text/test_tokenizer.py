"""Encoding and decoding through the public class."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers as backends
from hypothesis import given, settings
from hypothesis import strategies as st

from cvllm_jax.errors import ModelLoadError, TokenizationError
from cvllm_jax.text import Detokenizer, Tokenizer

KINDS = ("byte-level", "sentencepiece", "prefix once")
FRAGMENTS = st.lists(
    st.sampled_from(
        ("hello", " ", "  ", "w", "é", "漢", "\U0001f642", "\n", "1234", "\0")
    )
    | st.sampled_from(("<s>", "</s>", "[INST]", "<|im_end|>", "<tool>", "<unk>"))
    | st.text(max_size=3)
).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_text_comes_back(tokenizers: dict[str, Tokenizer], kind: str, data: st.DataObject) -> None:
    tokenizer, text = tokenizers[kind], data.draw(FRAGMENTS)
    ids = tokenizer.encode(text)
    assert not any(tokenizer.is_special(token) for token in ids)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    # This kind puts no space before a text that begins with one, and decoding drops it all the same.
    if kind != "prefix once" or not text.startswith(" "):
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_stream_is_the_whole(tokenizers: dict[str, Tokenizer], kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizers[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40))
    skip, continues = data.draw(st.booleans()), data.draw(st.booleans())
    stream = Detokenizer(tokenizer, skip, continues=continues)
    given_out = ""
    for count, token in enumerate(ids, 1):
        given_out += stream.push(token)
        # What was given out is a beginning of every text that may follow.
        assert tokenizer.decode(ids[:count], skip, continues=continues).startswith(given_out)
        assert tokenizer.decode(ids, skip, continues=continues).startswith(given_out)
    assert given_out + stream.finish() == tokenizer.decode(ids, skip, continues=continues)


def test_half_a_character_is_held_back(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    ids = [tokenizer.encode(text)[0] for text in ("h", "e")]
    first, second, third = tokenizer.encode("漢")
    stream = Detokenizer(tokenizer)
    assert [stream.push(token) for token in (first, second, third)] == ["", "", "漢"]
    # A sequence that breaks off is one replacement, given when the next byte shows it, or at the end.
    assert [stream.push(token) for token in (first, second, ids[0], first)] == ["", "", "\ufffdh", ""]
    assert stream.finish() == "\ufffd"


def test_sentencepiece_drops_the_space_it_put_there(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["sentencepiece"]
    hello = tokenizer.encode("hello")
    assert tokenizer.decode(hello) == "hello"
    assert tokenizer.decode([*hello, *hello]) == "hello hello"
    assert tokenizer.decode(hello, continues=True) == " hello"
    assert tokenizer.decode([tokenizer.bos_token_id, *hello]) == "hello"
    assert tokenizer.decode([tokenizer.bos_token_id, *hello], skip_special=False) == "<s> hello"


def test_control_tokens_only_on_request(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    text = "hello<|im_end|>"
    assert tokenizer.encode(text, allow_special=True)[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == "hello"
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True), skip_special=False) == text
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_bytes(tokenizer.eos_token_id) == b"<|im_end|>"


def test_many_threads(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    text = "hello wor <|im_end|> 1234 漢 " * 20
    expected = [tokenizer.encode(text, allow) for allow in (False, True)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda turn: tokenizer.encode(text, bool(turn % 2)), range(200)))
    assert all(ids == expected[turn % 2] for turn, ids in enumerate(results))


@pytest.mark.parametrize("text", ["\ud800", "a\udfff b"])
def test_lone_surrogates_are_refused(tokenizers: dict[str, Tokenizer], text: str) -> None:
    with pytest.raises(TokenizationError, match=r"character \d of the text is the lone surrogate U\+D"):
        tokenizers["byte-level"].encode(text)


@pytest.mark.parametrize("token", [-1, "1", 1.0, None])
def test_what_is_no_token_is_refused(tokenizers: dict[str, Tokenizer], token: object) -> None:
    with pytest.raises(TokenizationError, match="a token id must be a whole number from 0 up"):
        tokenizers["byte-level"].decode([token])


def test_ids_beyond_the_vocabulary_are_empty(tokenizers: dict[str, Tokenizer]) -> None:
    """Embedding tables are often padded, so a model may choose an id that no token has."""
    tokenizer = tokenizers["byte-level"]
    assert tokenizer.decode([tokenizer.vocab_size, 10**9]) == ""


class TestFromFile:
    def test_bos_is_found_in_the_post_processor(self, prefix_once_json: Path) -> None:
        tokenizer = Tokenizer.from_file(prefix_once_json)
        assert (tokenizer.bos_token_id, tokenizer.adds_bos) == (1, True)
        assert tokenizer.eos_token_id is None
        assert tokenizer.encode("hello") == [tokenizer.encode("hello")[0]]

    def test_an_end_token_is_no_bos(self, prefix_once_json: Path, tmp_path: Path) -> None:
        path = tmp_path / "tokenizer.json"
        backend = backends.Tokenizer.from_file(str(prefix_once_json))
        backend.post_processor = backends.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
        backend.save(str(path))
        assert Tokenizer.from_file(path).bos_token_id is None
        assert not Tokenizer.from_file(path).adds_bos

    def test_the_configuration_names_special_tokens(self, prefix_once_json: Path, tmp_path: Path) -> None:
        path = tmp_path / "tokenizer.json"
        path.write_bytes(prefix_once_json.read_bytes())
        config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "add_bos_token": False}
        path.with_name("tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = Tokenizer.from_file(str(path))
        assert dict(tokenizer.special_tokens) == {"bos_token": "<s>", "eos_token": "</s>"}
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.adds_bos) == (1, 2, False)

    def test_a_named_token_is_control_even_if_the_vocabulary_says_nothing(
        self, prefix_once_json: Path, tmp_path: Path
    ) -> None:
        data = json.loads(prefix_once_json.read_text())
        data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != "</s>"]
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(data))
        assert not Tokenizer.from_file(path).is_special(2)
        path.with_name("tokenizer_config.json").write_text('{"eos_token": "</s>"}')
        tokenizer = Tokenizer.from_file(path)
        assert tokenizer.is_special(2)
        assert tokenizer.encode("</s>", allow_special=True)[-1] == 2

    def test_added_spaces_are_spaces(self, prefix_once_json: Path, tmp_path: Path) -> None:
        """Gemma's vocabulary has runs of spaces as added tokens that are not special."""
        data = json.loads(prefix_once_json.read_text())
        spaces = data["model"]["vocab"]["▁▁"]
        data["added_tokens"].append(data["added_tokens"][0] | {"id": spaces, "content": "▁▁", "special": False})
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(data))
        assert Tokenizer.from_file(path).decode([spaces], continues=True) == "  "

    def test_text_never_becomes_a_control_token(self, tmp_path: Path) -> None:
        """A Unigram vocabulary finds its control tokens among the pieces of plain text."""
        pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<", -1.0), ("/", -1.0), ("s", -1.0), (">", -1.0)]
        backend = backends.Tokenizer(backends.models.Unigram(pieces, unk_id=0))
        backend.add_special_tokens(["<unk>", "</s>"])
        path = tmp_path / "tokenizer.json"
        backend.save(str(path))
        tokenizer = Tokenizer.from_file(path)
        assert tokenizer.encode("</s>", allow_special=True) == [1]
        assert tokenizer.encode("s/x") == [4, 3, 0]
        with pytest.raises(TokenizationError, match="spells '</s>', which this vocabulary cannot tell"):
            tokenizer.encode("s</s>s")

    def test_padding_and_truncation_in_the_file_are_not_applied(self, prefix_once_json: Path, tmp_path: Path) -> None:
        data = json.loads(prefix_once_json.read_text())
        data["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(data))
        assert len(Tokenizer.from_file(path).encode("w w w w w w")) > 2

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {}}', "\x00\xff"])
    def test_damaged_files(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "tokenizer.json"
        path.write_text(content)
        with pytest.raises(ModelLoadError, match="cannot load the tokenizer") as caught:
            Tokenizer.from_file(path)
        assert "\n" not in str(caught.value)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match="there is no such file"):
            Tokenizer.from_file(tmp_path / "tokenizer.json")

    def test_a_damaged_configuration(self, prefix_once_json: Path, tmp_path: Path) -> None:
        path = tmp_path / "tokenizer.json"
        path.write_bytes(prefix_once_json.read_bytes())
        path.with_name("tokenizer_config.json").write_text("{")
        with pytest.raises(ModelLoadError, match=r"tokenizer_config\.json"):
            Tokenizer.from_file(path)
