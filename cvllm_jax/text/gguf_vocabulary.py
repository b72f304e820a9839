"""Tokenizers from the vocabulary that a GGUF file carries.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer. The models: ``gpt2`` is byte-level BPE
with its merges, ``gemma4`` BPE over characters with spaces as SentencePiece writes them, ``llama`` SentencePiece BPE,
whose merges follow from the scores, ``t5`` SentencePiece's unigram language model, and ``bert`` WordPiece.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordPiece

from cvllm_jax.errors import ModelLoadError
from cvllm_jax.text.character_map import character_map
from cvllm_jax.text.merges import merges_by_score
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
_ENDS: Final = frozenset(
    ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>")
)
"""Control tokens whatever a file calls them, as llama.cpp has it: Phi-3's ``</s>`` is not marked as one."""
_PHI3_PLAIN: Final = ("<unk>", "<s>", "<|endoftext|>")
"""Phi-3's control tokens that take no spaces."""
_MOST_ADDED: Final = 1 << 16
_LONGEST_TOKEN: Final = 4096
_NEVER: Final = -1e6
"""A score, as the logarithm of a probability, that every other way to write a text beats."""
_LONGEST_WORD: Final = 100
"""Characters; BERT has no pieces for longer words."""


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
        kinds = {
            "gpt2": self.byte_level,
            "gemma4": self.characters,
            "llama": self.sentencepiece,
            "t5": self.unigram,
            "bert": self.word_pieces,
        }
        model = self.value("model", str, None)
        if model is None:
            raise ModelLoadError(f"{path} holds no tokenizer (no tokenizer.ggml.model)")
        if model not in kinds:
            raise ModelLoadError(f"{path} has a tokenizer of the kind {model!r:.80}; supported are {', '.join(kinds)}")
        self.model: str = model
        self.make = kinds[model]
        self.tokens: Sequence[str] = self.array("tokens", str)
        if not self.tokens:
            raise ModelLoadError(f"{path} has an empty vocabulary")
        if (longest := max(map(len, self.tokens))) > _LONGEST_TOKEN:
            raise ModelLoadError(f"{path} has a token of {longest} characters, over the limit of {_LONGEST_TOKEN}")
        self.types: Sequence[int] = self.array("token_type", int) or [_NORMAL] * len(self.tokens)
        if len(self.types) != len(self.tokens):
            raise ModelLoadError(f"{path} has {len(self.tokens)} tokens but {len(self.types)} token types")

    def build(self) -> tuple[tokenizers.Tokenizer, dict[str, str], bool]:
        try:
            backend, adds_bos = self.make()
        except ModelLoadError:
            raise
        except BaseException as error:
            # The library raises plain Exception, and on what it did not foresee a panic that is none.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = " ".join(str(error).split())[:300]
            raise ModelLoadError(f"the vocabulary of {self.path} is inconsistent: {reason}") from None
        special = {self.named(key) for key in (*_NAMED.values(), *_UNNAMED)}
        names = {name: self.tokens[token] for name, key in _NAMED.items() if (token := self.named(key)) is not None}
        # Spaces after Phi-3's control tokens belong to them, which the file does not say.
        strips = self.model == "llama" and self.metadata.get("general.architecture") == "phi3"
        added = []
        for index, (text, kind) in enumerate(zip(self.tokens, self.types)):
            ends = kind == _USER_DEFINED and text in _ENDS  # so that what a user writes cannot end a turn
            control = kind in (_CONTROL, _UNKNOWN) or index in special or ends
            if text and (control or kind == _USER_DEFINED):
                rstrip = strips and text not in _PHI3_PLAIN
                added.append(AddedToken(text, normalized=False, special=control, rstrip=rstrip))
        # The library looks for all of them at once, by a table that takes minutes to build for many.
        if len(added) > _MOST_ADDED or sum(len(token.content) for token in added) > _MOST_ADDED * 64:
            raise ModelLoadError(
                f"{self.path} has {len(added)} control and user-defined tokens; the limit is {_MOST_ADDED}, of 64 "
                f"characters on average"
            )
        backend.add_tokens(added)
        adds_bos = self.value("add_bos_token", bool, adds_bos) and self.model != "bert"  # part of the frame there
        self.frame(backend, names.get("bos_token") if adds_bos else None)
        return backend, names, adds_bos

    def frame(self, backend: tokenizers.Tokenizer, bos: str | None) -> None:
        """Have the tokens put around a text that encoders want there."""
        if self.model == "bert":
            # files had the beginning as cls, and have it as bos
            ends = [self.token("bos" if self.named("cls") is None else "cls"), self.token("seperator")]
        elif self.value("add_eos_token", bool, self.model == "t5"):
            ends = [*([] if bos is None else [bos]), self.token("eos")]
        else:
            return
        backend.post_processor = processors.TemplateProcessing(
            single=[*ends[:-1], "$A", ends[-1]], special_tokens=[(text, self.tokens.index(text)) for text in set(ends)]
        )

    def byte_level(self) -> tuple[tokenizers.Tokenizer, bool]:
        pre = self.value("pre", str, None)
        if pre not in PRE_TOKENIZERS:
            found = "names no pre-tokenizer" if pre is None else f"has the pre-tokenizer {pre!r:.80}"
            raise ModelLoadError(f"{self.path} {found}; supported are {', '.join(PRE_TOKENIZERS)}")
        splitting = PRE_TOKENIZERS[pre]
        backend = tokenizers.Tokenizer(
            BPE(
                vocab=self.ids(),
                merges=self.merges(),
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

    def characters(self) -> tuple[tokenizers.Tokenizer, bool]:
        backend = tokenizers.Tokenizer(
            BPE(
                vocab=self.ids(),
                merges=self.merges(),
                unk_token=self.token("unknown"),
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        backend.normalizer = normalizers.Replace(" ", _SPACE)
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), behavior="isolated")
        self.decode_spaces(backend, prefix=False)
        return backend, True

    def sentencepiece(self) -> tuple[tokenizers.Tokenizer, bool]:
        ids, scores = self.ids(), self.scores()
        pieces = {text: token for text, token in ids.items() if self.types[token] == _NORMAL}
        unknown = self.named("unknown")
        backend = tokenizers.Tokenizer(
            BPE(
                vocab=ids,
                merges=list(merges_by_score(pieces, scores)),
                unk_token=None if unknown is None else self.tokens[unknown],
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        prefix = self.value("add_space_prefix", bool, True)
        backend.normalizer = normalizers.Sequence(_spaces(prefix))
        self.decode_spaces(backend, prefix=prefix)
        return backend, True

    def unigram(self) -> tuple[tokenizers.Tokenizer, bool]:
        scores, unknown = self.scores(), self.token("unknown")
        self.ids()
        # Text finds neither control tokens nor bytes: nothing costs as much as they do.
        hidden = (_CONTROL, _BYTE)
        pieces = [
            (text, _NEVER if kind in hidden else 0.0 if kind == _USER_DEFINED else score)
            for text, kind, score in zip(self.tokens, self.types, scores)
        ]
        backend = tokenizers.Tokenizer(Unigram(pieces, unk_id=self.tokens.index(unknown), byte_fallback=False))
        steps: list[normalizers.Normalizer] = []
        if table := self.array("precompiled_charsmap", int):
            steps.append(character_map(bytes(byte & 0xFF for byte in table)))
        if self.value("remove_extra_whitespaces", bool, False):
            steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        prefix = self.value("add_space_prefix", bool, True)
        backend.normalizer = normalizers.Sequence([*steps, *_spaces(prefix)])
        self.decode_spaces(backend, prefix=prefix)
        return backend, False

    def word_pieces(self) -> tuple[tokenizers.Tokenizer, bool]:
        """WordPiece; the file marks beginnings of words, the library what continues them."""
        self.ids()
        words: dict[str, int] = {}
        for token, (text, kind) in enumerate(zip(self.tokens, self.types)):
            if kind != _CONTROL:
                text = text.removeprefix(_SPACE) if text.startswith(_SPACE) else f"##{text}"
            words[text] = token
        lowercase = self.value("normalizer.lowercase", bool, True)
        unknown = self.token("unknown")
        words[unknown] = self.tokens.index(unknown)
        backend = tokenizers.Tokenizer(WordPiece(words, unk_token=unknown, max_input_chars_per_word=_LONGEST_WORD))
        backend.normalizer = normalizers.BertNormalizer(
            lowercase=lowercase, strip_accents=self.value("normalizer.strip_accents", bool, lowercase)
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        return backend, False

    @staticmethod
    def decode_spaces(backend: tokenizers.Tokenizer, *, prefix: bool) -> None:
        backend.decoder = decoders.Sequence(
            [
                decoders.Replace(_SPACE, " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                *([decoders.Strip(" ", 1, 0)] if prefix else []),
            ]
        )

    def ids(self) -> dict[str, int]:
        ids: dict[str, int] = {}
        for token, text in enumerate(self.tokens):
            if text and ids.setdefault(text, token) != token:
                raise ModelLoadError(f"{self.path} has the token {text!r:.80} twice, as {ids[text]} and as {token}")
        return ids

    def merges(self) -> list[tuple[str, str]]:
        merges = []
        for merge in self.array("merges", str):
            left, space, right = merge.partition(" ")
            if not (left and space and right):
                raise ModelLoadError(f"{self.path} has the merge {merge!r:.80}, which is not two tokens")
            merges.append((left, right))
        return merges

    def scores(self) -> Sequence[float]:
        scores = self.array("scores", float)
        if len(scores) != len(self.tokens):
            raise ModelLoadError(f"{self.path} has {len(self.tokens)} tokens but {len(scores)} scores")
        if not all(map(math.isfinite, scores)):
            raise ModelLoadError(f"{self.path} has a score that is no finite number")
        return scores

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

    def token(self, key: str) -> str:
        """The text of a token that this kind of vocabulary cannot be without."""
        token = self.named(key)
        if token is None:
            raise ModelLoadError(f"{self.path} names no {key} token (tokenizer.ggml.{key}_token_id)")
        return self.tokens[token]


def _spaces(prefix: bool) -> list[normalizers.Normalizer]:
    """Spaces as SentencePiece writes them, perhaps with one in front of the text."""
    return [*([normalizers.Prepend(_SPACE)] if prefix else []), normalizers.Replace(" ", _SPACE)]
