"""How byte-level BPE vocabularies of GGUF files split text before they merge, by llama.cpp's names for it.

The patterns are those of the models' own tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import tokenizers
from tokenizers import pre_tokenizers

__all__ = ["PRE_TOKENIZERS", "PreTokenizer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """Patterns that split text one after another, each what the one before has left; their matches stay whole."""

    patterns: tuple[str, ...] = ()
    gpt2: bool = False
    """Whether GPT-2's pattern comes last."""
    whole_words: bool = False
    """Whether a word that is a token is not put together from merges."""
    adds_bos: bool = False
    composes: bool = False
    """Whether text is brought into Unicode's form NFC first."""

    def build(self) -> pre_tokenizers.PreTokenizer:
        splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence(
            [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2)]
        )


_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")


def _words(digits: str) -> tuple[str, ...]:
    """GPT-4's pattern; ``digits`` is the longest number that stays whole."""
    return ("|".join((_ENDINGS, r"[^\r\n\p{L}\p{N}]?\p{L}+", digits, r" ?[^\s\p{L}\p{N}]+[\r\n]*", _REST)),)


def _cased_words(endings: str, digits: str) -> tuple[str, ...]:
    """GPT-4o's pattern, which also splits words before capitals."""
    return ("|".join((*(word + endings for word in _CASED), digits, r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _REST)),)


_GPT2 = PreTokenizer(gpt2=True)
_SINGLE_DIGITS = PreTokenizer(patterns=(r"\p{N}",), gpt2=True)
_LLAMA3 = PreTokenizer(patterns=_words(r"\p{N}{1,3}"), whole_words=True, adds_bos=True)
_QWEN2 = PreTokenizer(patterns=_words(r"\p{N}"), composes=True)
_GPT4 = PreTokenizer(patterns=_words(r"\p{N}{1,3}"))

PRE_TOKENIZERS: Final[Mapping[str, PreTokenizer]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _SINGLE_DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    "stablelm2": PreTokenizer(patterns=_words(r"\p{N}")),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _GPT4),
    "glm4": PreTokenizer(patterns=_words(r"\p{N}{1,3}"), whole_words=True),
    "tekken": PreTokenizer(patterns=_cased_words("", r"\p{N}"), whole_words=True, adds_bos=True),
    "gpt-4o": PreTokenizer(patterns=_cased_words(f"{_ENDINGS}?", r"\p{N}{1,3}")),
    "deepseek-coder": PreTokenizer(
        patterns=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
    ),
    "deepseek-v3": PreTokenizer(
        patterns=(
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            rf"""| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_REST}""",
        )
    ),
}
