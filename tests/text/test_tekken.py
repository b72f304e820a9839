"""Mistral's tekken.json, small; the real ones are in test_real_tokenizers.py."""

import base64
import json
from pathlib import Path

import pytest

from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.errors import ModelLoadError
from cvllm_jax.text import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
BYTES = [*(bytes([byte]) for byte in range(256)), b" h", b"el", b"hel", b"hello", b"lo", b"\xe6\xbc", b"unused"]
SPECIALS = 24


def content(**changes: object) -> dict[str, object]:
    config = {"pattern": r" ?\p{L}+|\s+|.", "default_vocab_size": SPECIALS + len(BYTES) - 1, "version": "v7"}
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate(BYTES)
    ]
    return {"config": config | {"default_num_special_tokens": SPECIALS}, "vocab": vocab} | changes


def write(folder: Path, **changes: object) -> Path:
    path = folder / "tekken.json"
    path.write_text(json.dumps(content(**changes)))
    return path


def test_words_that_are_tokens_stay_whole_and_lower_ranks_merge_first(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_tekken(write(tmp_path))
    pieces = [tokenizer.token_bytes(token) for token in tokenizer.encode("hello hellow 漢")]
    assert pieces == [b"hello", b" h", b"el", b"lo", b"w", b" ", b"\xe6\xbc", b"\xa2"]
    assert tokenizer.encode("a") == [SPECIALS + ord("a")]
    assert tokenizer.decode(tokenizer.encode("hello hellow 漢 unused")) == "hello hellow 漢 unused"
    assert tokenizer.vocab_size == SPECIALS + len(BYTES) - 1  # the last one is not used


def test_control_tokens_come_first(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_tekken(write(tmp_path))
    assert tokenizer.encode("<s>[INST]a[/INST]</s>", allow_special=True) == [1, 3, SPECIALS + ord("a"), 4, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.adds_bos) == (1, 2, True)
    assert tokenizer.control_tokens[21] == "<SPECIAL_21>"
    assert not any(map(tokenizer.is_special, tokenizer.encode("<s>[INST]")))
    listed = [{"rank": 1, "token_str": "<s>", "is_control": True}, {"rank": 5, "token_str": "[THINK]"}]
    tokenizer = Tokenizer.from_tekken(write(tmp_path, special_tokens=listed))
    assert tokenizer.encode("<s>[THINK]", allow_special=True) == [1, 5]
    assert tokenizer.control_tokens[0] == "<SPECIAL_0>"


def test_a_folder_may_have_nothing_else(tmp_path: Path) -> None:
    model = GOLDEN / "llama" / "mistral_window"
    for file in model.glob("*"):
        if file.name.startswith(("config", "model")):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with open_checkpoint(tmp_path) as checkpoint:
        with pytest.raises(ModelLoadError, match=r"no tokenizer\.json and no tekken\.json"):
            Tokenizer.from_checkpoint(checkpoint)
        write(tmp_path)
        assert Tokenizer.from_checkpoint(checkpoint).bos_token_id == 1


@pytest.mark.parametrize(("changes", "message"), [
    ({"vocab": {}}, "it must hold a vocab"),
    ({"config": {}}, "it must hold a vocab"),
    ({"config": {"pattern": ".", "default_vocab_size": 10**9, "default_num_special_tokens": 0}}, "must hold a vocab"),
    ({"config": {"pattern": "(", "default_vocab_size": 256, "default_num_special_tokens": 0}}, "inconsistent"),
    ({"vocab": [{"rank": 1, "token_bytes": "AA=="}] * 300}, "entry 0 of its vocab"),
    ({"vocab": [{"rank": rank, "token_bytes": "AA=="} for rank in range(300)]}, "the same bytes twice"),
    ({"vocab": [{"rank": rank, "token_bytes": "?"} for rank in range(300)]}, "is no base64"),
    ({"special_tokens": [{"rank": 24, "token_str": "a"}]}, "a rank below 24"),
    ({"special_tokens": [{"rank": rank, "token_str": "a"} for rank in (0, 1)]}, "the same text"),
    ({"special_tokens": [{}] * 25}, "a list of up to 24"),
])  # fmt: skip
def test_damaged_files(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        Tokenizer.from_tekken(write(tmp_path, **changes))
    (tmp_path / "tekken.json").write_text("{")
    with pytest.raises(ModelLoadError, match="inconsistent"):
        Tokenizer.from_tekken(tmp_path / "tekken.json")
