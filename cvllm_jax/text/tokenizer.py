"""Text to token ids and back, from ``tokenizer.json`` or from the vocabulary in a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import tokenizers

from cvllm_jax.checkpoints.folder import read_json
from cvllm_jax.errors import Error, ModelLoadError, TokenizationError
from cvllm_jax.text.token_bytes import TokenBytes, token_bytes

if TYPE_CHECKING:
    from cvllm_jax.checkpoints.checkpoint import Checkpoint

__all__ = ["Tokenizer"]

MAX_TOKENS = 1 << 24
"""Ids that a table is made for; the largest vocabularies have 262,144."""


class Tokenizer:
    """A model's tokenizer. Immutable; any number of threads may use it at once.

    Special (control) tokens, such as ``<|im_end|>``, are what a file marks as special, and every token it names as
    beginning, end, padding or unknown.

    Arguments:
        backend: the vocabulary with its rules. It is not changed.
        special_tokens: names as chat templates know them (``bos_token`` ...) to the tokens' text.
        adds_bos: whether the files want plain text to begin with the BOS token; None finds out from
            the post-processor.
    """

    special_tokens: Mapping[str, str]
    vocab_size: int
    """One more than the highest id."""
    bos_token_id: int | None
    eos_token_id: int | None
    adds_bos: bool
    """Whether the model's files want plain text to begin with :attr:`bos_token_id`. :meth:`encode` leaves it out."""
    frame: tuple[tuple[int, ...], tuple[int, ...]]
    """What the post-processor of ``tokenizer.json`` puts before and after a text, for encoders: [CLS] and [SEP]."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        adds_bos: bool | None = None,
    ) -> None:
        names = dict(special_tokens or {})
        begun = _attempt(
            lambda: backend.encode("a", add_special_tokens=True),
            lambda reason: ModelLoadError(f"the tokenizer cannot encode a letter: {reason}"),
        )
        first = begun.ids[0] if begun.special_tokens_mask[:1] == [1] else None
        self.frame = _frame(begun)
        if first is not None and sum(begun.special_tokens_mask) == 1:
            names.setdefault("bos_token", str(backend.id_to_token(first)))
        added = _added_tokens(backend, names.values())
        self._matching = _assemble(backend, added)
        self._literal = _assemble(backend, added)
        self._literal.encode_special_tokens = True
        self._special = {token: item.content for token, item in added.items() if item.special}
        # Unigram vocabularies may find a control token among the pieces of plain text. The unknown token, which
        # stands for a character that no vocabulary has, is no such find.
        unknown = {
            backend.token_to_id(getattr(backend.model, "unk_token", None) or ""),
            *self._literal.encode("\U0010fffd", add_special_tokens=False).ids,
        }
        self._ambiguous = frozenset(
            token
            for token, content in self._special.items()
            if token not in unknown and token in self._literal.encode(content, add_special_tokens=False).ids
        )
        self.special_tokens = MappingProxyType(names)
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        if self.vocab_size > MAX_TOKENS:
            raise ModelLoadError(
                f"the tokenizer has a token with the id {self.vocab_size - 1}, over the limit of {MAX_TOKENS - 1}"
            )
        self.bos_token_id = self._named("bos_token")
        self.eos_token_id = self._named("eos_token")
        if adds_bos is None:
            adds_bos = first == self.bos_token_id
        self.adds_bos = adds_bos and self.bos_token_id is not None

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Load a ``tokenizer.json``; a ``tokenizer_config.json`` beside it names the special tokens.

        Raises:
            ModelLoadError: the file is absent or damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise ModelLoadError(f"cannot load the tokenizer {path}: there is no such file")
        backend = _attempt(
            lambda: tokenizers.Tokenizer.from_file(str(path)),
            lambda reason: ModelLoadError(f"cannot load the tokenizer {path}: {reason}"),
        )
        backend.no_truncation()
        backend.no_padding()
        named = path.with_name("tokenizer_config.json")
        config = read_json(named) if os.path.lexists(named) else {}
        adds_bos = config.get("add_bos_token")
        return cls(
            backend,
            special_tokens=_named_tokens(config),
            adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        )

    @classmethod
    def from_gguf(cls, path: str | Path) -> Self:
        """Build the tokenizer from a GGUF file's metadata; a file with a vocabulary alone will do.

        Raises:
            ModelLoadError: the file is damaged or holds a kind of vocabulary that is not supported.
        """
        from cvllm_jax.checkpoints.gguf import GgufFile
        from cvllm_jax.text.gguf_vocabulary import read_vocabulary

        with GgufFile(path) as file:
            backend, special_tokens, adds_bos = read_vocabulary(file.metadata, str(path))
        return cls(backend, special_tokens=special_tokens, adds_bos=adds_bos)

    @classmethod
    def from_tekken(cls, path: str | Path) -> Self:
        """Load Mistral's ``tekken.json``.

        Raises:
            ModelLoadError: the file is absent or damaged.
        """
        from cvllm_jax.text.tekken import read_tekken

        backend, special_tokens = read_tekken(Path(path))
        return cls(backend, special_tokens=special_tokens, adds_bos=True)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """The tokenizer that belongs to a checkpoint.

        Raises:
            ModelLoadError: it has none, or one that cannot be read.
        """
        if checkpoint.gguf_metadata is not None:
            return cls.from_gguf(checkpoint.gguf_metadata)
        path = checkpoint.path / "tokenizer.json"
        if path.is_file():
            return cls.from_file(path)
        path = checkpoint.path / "tekken.json"
        if path.is_file():
            return cls.from_tekken(path)
        raise ModelLoadError(
            f"{checkpoint.path} has no tokenizer.json and no tekken.json; a tokenizer.model alone is not supported"
        )

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids of a text, without a BOS token in front.

        Arguments:
            allow_special: whether text that spells a control token becomes that token. Otherwise it is
                text like any other.

        Raises:
            TokenizationError: the text holds a lone surrogate, which is no character.
        """
        return _ids(self._encode(self._matching, text)) if allow_special else self._encode_literal(self._literal, text)

    def encode_masked(self, text: str, unmask: Mapping[int, str]) -> list[int]:
        """Token ids of a prompt with control tokens, in which masked characters stand for literal text.

        As ``encode(text, allow_special=True)``, but what a masked character belongs to is text. ``unmask`` is a table
        for ``str.translate`` that puts the characters back.
        """
        encoding = self._encode(self._matching, text)
        if not unmask:
            return _ids(encoding)
        ids: list[int] = []
        begin = first = 0  # of the text since the last control token, in characters and in tokens
        for index, (token, (start, stop)) in enumerate(zip(encoding.ids, encoding.offsets)):
            content = self._special.get(token)
            # The unknown token also stands for characters that the vocabulary lacks.
            if content is not None and text[start:stop].strip() == content.strip():
                ids += self._unmasked(text, begin, start, encoding.ids[first:index], unmask)
                ids.append(token)
                begin, first = stop, index + 1
        return ids + self._unmasked(text, begin, len(text), encoding.ids[first:], unmask)

    def _unmasked(
        self, text: str, begin: int, end: int, ids: list[int], unmask: Mapping[int, str]
    ) -> list[int]:
        masked = text[begin:end]
        literal = masked.translate(unmask)
        if literal == masked:
            return ids
        return self._encode_literal(self._literal if begin == 0 else self._literal_inside, literal)

    def decode(self, ids: Iterable[int], skip_special: bool = True, *, continues: bool = False) -> str:
        """The text of token ids. Bytes that form no character come out as U+FFFD.

        Arguments:
            skip_special: leave control tokens out.
            continues: the ids follow other text, so a space that they begin with belongs to it. A SentencePiece
                vocabulary writes one in front of every text, which is dropped otherwise.

        Raises:
            TokenizationError: an id is negative or no integer. Ids that the vocabulary lacks are empty.
        """
        if self._bytes is None:
            return str(self._matching.decode(list(ids), skip_special_tokens=skip_special))
        pieces = [self.token_bytes(token) for token in ids if not (skip_special and token in self._special)]
        text = b"".join(pieces).decode("utf-8", "replace")
        return text if continues else drop_leading_spaces(text, self.leading_spaces)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text; for a control token, those of its name.

        Raises:
            TokenizationError: the id is negative or no integer, or the vocabulary is one of words, without bytes.
        """
        if self._bytes is None:
            raise TokenizationError("the tokens of this vocabulary stand for no bytes of their own")
        if not isinstance(token, int) or token < 0:
            raise TokenizationError(f"a token id must be a whole number from 0 up, not {token!r:.80}")
        table = self._bytes.table
        return table[token] if token < len(table) else b""

    def token_name(self, token: int) -> str:
        """A token as the vocabulary spells it (``Ġworld``, ``##ing``); empty for ids that it lacks."""
        return self._matching.id_to_token(token) or ""

    def is_special(self, token: int) -> bool:
        return token in self._special

    @property
    def leading_spaces(self) -> int:
        """Spaces at the start of a text that the vocabulary puts there and that decoding drops."""
        return self._bytes.leading_spaces if self._bytes else 0

    @property
    def control_tokens(self) -> Mapping[int, str]:
        """Every control token by its id."""
        return MappingProxyType(self._special)

    @cached_property
    def _bytes(self) -> TokenBytes | None:
        return token_bytes(self._matching, self.vocab_size)

    @cached_property
    def _literal_inside(self) -> tokenizers.Tokenizer:
        """Encodes literal text that is not at the start, where some vocabularies put a space."""
        backend = self._literal
        if backend.pre_tokenizer is None:
            return backend
        state = backend.pre_tokenizer.__getstate__().decode()
        if '"prepend_scheme":"first"' not in state:
            return backend
        inside = state.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
        carrier = tokenizers.Tokenizer.from_str(
            '{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]},"pre_tokenizer":' + inside + "}"
        )
        assembled = _assemble(backend, backend.get_added_tokens_decoder())
        assembled.pre_tokenizer = carrier.pre_tokenizer
        assembled.encode_special_tokens = True
        return assembled

    def _encode(self, backend: tokenizers.Tokenizer, text: str) -> Any:
        if not isinstance(text, str):
            raise TokenizationError(f"text must be a string, not a {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizationError(
                f"character {error.start} of the text is the lone surrogate U+{ord(text[error.start]):04X}, "
                f"which is no character"
            ) from None
        return _attempt(
            lambda: backend.encode(text, add_special_tokens=False),
            lambda reason: TokenizationError(f"the tokenizer cannot encode the text: {reason}"),
        )

    def _encode_literal(self, backend: tokenizers.Tokenizer, text: str) -> list[int]:
        ids = _ids(self._encode(backend, text))
        if self._ambiguous and not self._ambiguous.isdisjoint(ids):
            token = next(token for token in ids if token in self._ambiguous)
            raise TokenizationError(
                f"the text spells {self._special[token]!r}, which this vocabulary cannot tell from the control token"
            )
        return ids

    def _named(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._matching.token_to_id(text)


def _attempt[T](work: Callable[[], T], refusal: Callable[[str], Error]) -> T:
    """What the library makes; it raises plain Exception, and on what it did not foresee a panic that is none."""
    try:
        return work()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise refusal(_one_line(error)) from None


def _ids(encoding: tokenizers.Encoding) -> list[int]:
    return list(encoding.ids)


def _frame(encoding: tokenizers.Encoding) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens around those of the text itself."""
    text = [index for index, special in enumerate(encoding.special_tokens_mask) if not special]
    if not text:
        return (), ()
    return tuple(encoding.ids[: text[0]]), tuple(encoding.ids[text[-1] + 1 :])


def drop_leading_spaces(text: str, count: int) -> str:
    """The text without up to ``count`` spaces at its start."""
    return text[min(count, len(text) - len(text.lstrip(" "))) :]


def _added_tokens(
    backend: tokenizers.Tokenizer, named: Iterable[str]
) -> dict[int, tokenizers.AddedToken]:
    """The tokens that are matched before text is split, with those that have a name made special."""
    added = dict(backend.get_added_tokens_decoder())
    for text in named:
        token = backend.token_to_id(text)
        if token is None:
            continue
        old = added.get(token)
        if old is None:
            added[token] = tokenizers.AddedToken(text, normalized=False, special=True)
        elif not old.special:
            added[token] = tokenizers.AddedToken(
                text, single_word=old.single_word, lstrip=old.lstrip, rstrip=old.rstrip, normalized=False, special=True
            )
    return added


def _assemble(
    backend: tokenizers.Tokenizer, added: Mapping[int, tokenizers.AddedToken]
) -> tokenizers.Tokenizer:
    """A tokenizer with the same model (shared, not copied) and rules, and these added tokens."""
    assembled = tokenizers.Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        value = getattr(backend, part)
        if value is not None:
            setattr(assembled, part, value)
    assembled.add_tokens([token for _, token in sorted(added.items())])
    for token, item in added.items():
        if assembled.token_to_id(item.content) != token:
            raise ModelLoadError(f"the tokenizer's added token {item.content!r:.80} cannot have the id {token}")
    return assembled


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token`` and the like of a ``tokenizer_config.json``: each a string, or an object with its content."""
    named = {}
    for key, value in config.items():
        if key.endswith("_token"):
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                named[key] = text
    return named


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
