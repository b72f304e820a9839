"""Mistral's own tokenizer files, ``tekken.json``: bytes by rank, as tiktoken has them, behind control tokens.

The format: https://github.com/mistralai/mistral-common, tokens/tokenizers/tekken.py.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken, Regex, decoders, pre_tokenizers
from tokenizers.models import BPE

from cvllm_jax.checkpoints.mapped_file import map_file
from cvllm_jax.errors import ModelLoadError
from cvllm_jax.text.merges import merges_by_score
from cvllm_jax.text.token_bytes import BYTE_OF_CHARACTER

__all__ = ["read_tekken"]

_NAMES: Final = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
_UNLISTED: Final = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
"""The control tokens of files that do not list them."""
_MAX_BYTES, _MAX_ENTRIES = 1 << 26, 1 << 20
_CHARACTER_OF_BYTE: Final = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}


def read_tekken(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer and its named special tokens. Plain text wants a BOS token in front.

    Raises:
        ModelLoadError: the file is absent, damaged or inconsistent.
    """
    with map_file(path) as content:
        if len(content) > _MAX_BYTES or content[:].count(b"{") > _MAX_ENTRIES:
            raise ModelLoadError(f"{path} is over the limit of {_MAX_BYTES} bytes and {_MAX_ENTRIES} entries")
        data = content[:]
    try:
        return _build(json.loads(data))
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {error}") from None
    except Exception as error:  # the library raises plain Exception
        reason = " ".join(str(error).split())[:300]
        raise ModelLoadError(f"the vocabulary of {path} is inconsistent: {reason}") from None


def _build(data: Any) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    match data:
        case {
            "config": {
                "pattern": str(pattern),
                "default_vocab_size": int(size),
                "default_num_special_tokens": int(specials),
            },
            "vocab": list(entries),
        } if 0 <= specials <= size <= specials + len(entries):
            controls = _controls(data.get("special_tokens"), specials)
        case _:
            raise ModelLoadError("it must hold a vocab, and a config with its pattern and how many tokens it uses")
    pieces: dict[str, int] = {}
    for rank, entry in enumerate(entries[: size - specials]):
        match entry:
            case {"rank": int(found), "token_bytes": str(encoded)} if found == rank:
                pieces[_characters(encoded)] = rank
            case _:
                raise ModelLoadError(f"entry {rank} of its vocab must have its bytes and the rank {rank}")
    if len(pieces) != size - specials:
        raise ModelLoadError("its vocab has the same bytes twice")
    merges = list(merges_by_score(pieces, range(0, -len(pieces), -1)))
    ids = {text: token for token, text in enumerate(controls)}
    # a control token may be spelled as some bytes are; it is matched before those are
    ids = {piece: specials + rank for piece, rank in pieces.items()} | ids
    backend = tokenizers.Tokenizer(BPE(vocab=ids, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in controls])
    return backend, {name: text for name, text in _NAMES.items() if text in ids}


def _controls(listed: object, count: int) -> list[str]:
    """The control tokens, whose ids come first; places without one are filled up."""
    if listed is None:
        listed = [{"rank": rank, "token_str": text} for rank, text in enumerate(_UNLISTED[:count])]
    if not isinstance(listed, list) or len(listed) > count:
        raise ModelLoadError(f"its special_tokens must be a list of up to {count}")
    controls = [f"<SPECIAL_{rank}>" for rank in range(count)]
    for token in listed:
        match token:
            case {"rank": int(rank), "token_str": str(text)} if 0 <= rank < count and text:
                controls[rank] = text
            case _:
                raise ModelLoadError(f"each of its special_tokens must have a text and a rank below {count}")
    if len(set(controls)) != count:
        raise ModelLoadError("two of its special_tokens have the same text")
    return controls


def _characters(encoded: str) -> str:
    """Bytes in the characters of byte-level vocabularies."""
    try:
        return base64.b64decode(encoded, validate=True).decode("latin-1").translate(_CHARACTER_OF_BYTE)
    except (binascii.Error, ValueError):
        raise ModelLoadError(f"{encoded!r:.80} in its vocab is no base64") from None
