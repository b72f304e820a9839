"""Tokenizers from the vocabulary that a GGUF file carries.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer. Two models are supported: ``gpt2``
(byte-level BPE with its merges) and ``llama`` (SentencePiece BPE, whose merges follow from the scores).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken, decoders, normalizers
from tokenizers.models import BPE

from cvllm_jax.errors import ModelLoadError
from cvllm_jax.text.pre_tokenizers import PRE_TOKENIZERS

__all__ = ["read_vocabulary"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "▁"
_NAMED: Final = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding",
    "sep_token": "seperator", "cls_token": "cls", "mask_token": "mask",
}  # fmt: skip
"""Names in chat templates and in GGUF keys (where the separator is misspelled)."""
_UNNAMED: Final = ("eot", "eom")
"""Further tokens that end a turn."""


def read_vocabulary(
    metadata: Mapping[str, Any], path: str
) -> tuple[tokenizers.Tokenizer, dict[str, str], bool]:
    """The tokenizer, its named special tokens, and whether plain text wants a BOS token in front.

    Raises:
        ModelLoadError: there is no vocabulary, it is inconsistent, or of a kind that is not supported.
    """
    return _Vocabulary(metadata, path).build()


class _Vocabulary:
    def __init__(self, metadata: Mapping[str, Any], path: str) -> None:
        self.path = path
        self.metadata = metadata
        model = self.value("model", str, None)
        if model is None:
            raise ModelLoadError(f"{path} holds no tokenizer (no tokenizer.ggml.model)")
        if model not in ("gpt2", "llama"):
            raise ModelLoadError(
                f"{path} has a tokenizer of the kind {model!r:.80}; supported are gpt2 (byte-level BPE) and "
                f"llama (SentencePiece)"
            )
        self.model: str = model
        self.tokens: Sequence[str] = self.array("tokens", str)
        if not self.tokens:
            raise ModelLoadError(f"{path} has an empty vocabulary")
        self.types: Sequence[int] = self.array("token_type", int) or [_NORMAL] * len(self.tokens)
        if len(self.types) != len(self.tokens):
            raise ModelLoadError(f"{path} has {len(self.tokens)} tokens but {len(self.types)} token types")

    def build(self) -> tuple[tokenizers.Tokenizer, dict[str, str], bool]:
        try:
            backend, adds_bos = self.byte_level() if self.model == "gpt2" else self.sentencepiece()
        except ModelLoadError:
            raise
        except Exception as error:  # the library raises plain Exception
            reason = " ".join(str(error).split())[:300]
            raise ModelLoadError(f"the vocabulary of {self.path} is inconsistent: {reason}") from None
        special = {self.named(key) for key in (*_NAMED.values(), *_UNNAMED)}
        added = []
        for index, (text, kind) in enumerate(zip(self.tokens, self.types)):
            control = kind in (_CONTROL, _UNKNOWN) or index in special
            if text and (control or kind == _USER_DEFINED):
                added.append(AddedToken(text, normalized=False, special=control))
        backend.add_tokens(added)
        names = {name: self.tokens[token] for name, key in _NAMED.items() if (token := self.named(key)) is not None}
        return backend, names, self.value("add_bos_token", bool, adds_bos)

    def byte_level(self) -> tuple[tokenizers.Tokenizer, bool]:
        pre = self.value("pre", str, None)
        if pre not in PRE_TOKENIZERS:
            found = "names no pre-tokenizer" if pre is None else f"has the pre-tokenizer {pre!r:.80}"
            raise ModelLoadError(f"{self.path} {found}; supported are {', '.join(PRE_TOKENIZERS)}")
        splitting = PRE_TOKENIZERS[pre]
        merges = []
        for merge in self.array("merges", str):
            left, space, right = merge.partition(" ")
            if not (left and space and right):
                raise ModelLoadError(f"{self.path} has the merge {merge!r:.80}, which is not two tokens")
            merges.append((left, right))
        backend = tokenizers.Tokenizer(
            BPE(
                vocab=self.ids(),
                merges=merges,
                fuse_unk=False,
                byte_fallback=False,
                ignore_merges=splitting.whole_words,
            )
        )
        if splitting.composes:
            backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = splitting.build()
        backend.decoder = decoders.ByteLevel()
        return backend, splitting.adds_bos

    def sentencepiece(self) -> tuple[tokenizers.Tokenizer, bool]:
        ids = self.ids()
        scores = self.array("scores", float)
        if len(scores) != len(self.tokens):
            raise ModelLoadError(f"{self.path} has {len(self.tokens)} tokens but {len(scores)} scores")
        pieces = {text: token for text, token in ids.items() if self.types[token] == _NORMAL}
        unknown = self.named("unknown")
        backend = tokenizers.Tokenizer(
            BPE(
                vocab=ids,
                merges=list(_merges(pieces, scores)),
                unk_token=None if unknown is None else self.tokens[unknown],
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        prefix = self.value("add_space_prefix", bool, True)
        backend.normalizer = normalizers.Sequence(
            [*([normalizers.Prepend(_SPACE)] if prefix else []), normalizers.Replace(" ", _SPACE)]
        )
        backend.decoder = decoders.Sequence(
            [
                decoders.Replace(_SPACE, " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                *([decoders.Strip(" ", 1, 0)] if prefix else []),
            ]
        )
        return backend, True

    def ids(self) -> dict[str, int]:
        return {text: token for token, text in enumerate(self.tokens)}

    def value(self, name: str, kind: type, default: Any) -> Any:
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if value is not default and not isinstance(value, kind):
            raise ModelLoadError(f"tokenizer.ggml.{name} of {self.path} has the wrong type, {type(value).__name__}")
        return value

    def array(self, name: str, kind: type) -> Sequence[Any]:
        values = self.metadata.get(f"tokenizer.ggml.{name}", [])
        if isinstance(values, str) or not isinstance(values, Sequence) or any(not isinstance(v, kind) for v in values):
            raise ModelLoadError(f"tokenizer.ggml.{name} of {self.path} must be a list of {kind.__name__} values")
        return values

    def named(self, key: str) -> int | None:
        token: int | None = self.value(f"{key}_token_id", int, None)
        if token is not None and not 0 <= token < len(self.tokens):
            raise ModelLoadError(
                f"tokenizer.ggml.{key}_token_id of {self.path} is {token}; it has {len(self.tokens)} tokens"
            )
        return token


def _merges(pieces: Mapping[str, int], scores: Sequence[float]) -> Iterator[tuple[str, str]]:
    """Every way to make a piece from two others, the highest score first.

    SentencePiece merges whichever neighbours form the piece of the highest score.
    """
    for piece in sorted(pieces, key=lambda text: (-scores[pieces[text]], pieces[text])):
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        yield from sorted(
            (split for split in splits if split[0] in pieces and split[1] in pieces),
            key=lambda split: (pieces[split[0]], pieces[split[1]]),
        )
