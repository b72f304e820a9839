"""The bytes that each token stands for, read off a tokenizer's decoder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

__all__ = ["BYTE_OF_CHARACTER", "TokenBytes", "token_bytes"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level vocabularies are written in (Radford et al., GPT-2).

    Printable Latin-1 bytes are their own character, the others follow from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_alphabet()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBytes:
    table: tuple[bytes, ...]
    """By token id; empty for ids that the vocabulary leaves out."""
    leading_spaces: int
    """How many spaces at the start of a text are the tokenizer's own (SentencePiece puts one there)."""


def token_bytes(backend: tokenizers.Tokenizer, size: int) -> TokenBytes | None:
    """The table for ids below ``size``, or None where tokens stand for no bytes of their own (WordPiece ...)."""
    steps = list(_steps(json.loads(backend.decoder.__getstate__()))) if backend.decoder else []
    kinds = {step["type"] for step in steps}
    byte_level, byte_fallback = kinds == {"ByteLevel"}, "ByteFallback" in kinds
    replacements: dict[str, str] = {}
    leading_spaces = 0
    if kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        for step in steps:
            if step["type"] == "Replace":
                if "String" not in step["pattern"]:
                    return None
                replacements[step["pattern"]["String"]] = step["content"]
            elif step["type"] == "Strip":
                if step["content"] != " " or step["stop"]:
                    return None
                leading_spaces = step["start"]
            elif step["type"] == "Metaspace":
                replacements[step["replacement"]] = " "
                leading_spaces = 0 if step.get("prepend_scheme", "always") == "never" else 1
    elif not byte_level:
        return None

    added = backend.get_added_tokens_decoder()

    def encoded(text: str, token: int) -> bytes:
        # Added tokens are written out, but for the spaces of SentencePiece ("▁▁" in Gemma's vocabulary).
        if token in added and (byte_level or added[token].special):
            return text.encode()
        if byte_level:
            if all(character in BYTE_OF_CHARACTER for character in text):
                return bytes(BYTE_OF_CHARACTER[character] for character in text)
            return text.encode()
        if byte_fallback and (match := _BYTE_TOKEN.fullmatch(text)):
            return bytes.fromhex(match[1])
        return _replaced(text, replacements).encode()

    table = [b""] * size
    for text, token in backend.get_vocab(with_added_tokens=True).items():
        table[token] = encoded(text, token)
    return TokenBytes(table=tuple(table), leading_spaces=leading_spaces)


def _steps(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _replaced(text: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text
