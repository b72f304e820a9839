"""How byte-level BPE vocabularies of GGUF files split text before they merge, by llama.cpp's names for it.

The patterns are those of the models' own tokenizers. Names that llama.cpp knows and that are not here belong to
architectures that are not supported, or split by code instead of a pattern (``kimi-k2``, ``afmoe``).
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

    patterns: tuple[str, ...]
    whole_words: bool = False
    """Whether a word that is a token is not put together from merges."""
    adds_bos: bool = False
    composes: bool = False
    """Whether text is brought into Unicode's form NFC first."""

    def build(self) -> pre_tokenizers.PreTokenizer:
        splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s+(?!\S)|\s+"
_REST = rf"\s*[\r\n]+|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_DIGIT, _THREE_DIGITS = r"\p{N}", r"\p{N}{1,3}"
_GPT2_WORDS = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}"
_NO_PUNCTUATION = r" ?[^(\s|.,!?…。，、।۔،)]+"


def _words(digits: str = _THREE_DIGITS, *, endings: str = _ENDINGS, word: str = _WORD, marks: str = _MARKS) -> str:
    """GPT-4's pattern; ``digits`` is the longest number that stays whole."""
    return "|".join((endings, word, digits, marks, _REST))


def _cased_words(endings: str, digits: str = _THREE_DIGITS) -> str:
    """GPT-4o's pattern, which also splits words before capitals."""
    return "|".join((*(word + endings for word in _CASED), digits, r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _REST))


def _deepseek_words(after_marks: str = r"[\r\n]*", rest: str = _REST) -> str:
    """DeepSeek V3's pattern for what is neither a number nor Chinese or Japanese."""
    return (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        rf"| ?[\p{{P}}\p{{S}}]+{after_marks}|{rest}"
    )


_CHINESE_OR_JAPANESE = "[一-龥぀-ゟ゠-ヿ]+"
_CHINESE_OR_KOREAN = "[一-龥ࠀ-一가-퟿]+"
# Letters with case as DeepSeek's first tokenizer lists them: without what is left out here, most of it younger.
_LISTED_LETTERS = (
    r"[[\p{Lu}\p{Ll}\p{Lt}]&&[^\x{560}-\x{588}\x{10C7}-\x{10FF}\x{1C80}-\x{1C88}\x{2D00}-\x{2D2D}\x{A790}-\x{A7FA}"
    r"\x{AB30}-\x{AB68}\x{10570}-\x{105BC}\x{16E40}-\x{16E7F}\x{1D400}-\x{1DF2A}]]+"
)

_GPT2 = PreTokenizer(patterns=(_GPT2_WORDS,))
_SINGLE_DIGITS = PreTokenizer(patterns=(_DIGIT, _GPT2_WORDS))
_LLAMA3 = PreTokenizer(patterns=(_words(),), whole_words=True, adds_bos=True)
_QWEN2 = PreTokenizer(patterns=(_words(_DIGIT),), composes=True)
_GPT4 = PreTokenizer(patterns=(_words(),))
_GPT4_SINGLE_DIGITS = PreTokenizer(patterns=(_words(_DIGIT),))
_GPT4O = PreTokenizer(patterns=(_cased_words(f"{_ENDINGS}?"),))
_DEEPSEEK_V3 = PreTokenizer(patterns=(_THREE_DIGITS, _CHINESE_OR_JAPANESE, _deepseek_words()))
_NO_MARKS = PreTokenizer(patterns=(_NO_PUNCTUATION,))
_BAILING = PreTokenizer(
    patterns=("|".join((r"'(?i:[sdmt]|ll|ve|re)", _WORD, _DIGIT, _MARKS, rf"\s*[\r\n]|{_SPACES}")),)
)

PRE_TOKENIZERS: Final[Mapping[str, PreTokenizer]] = {
    "default": PreTokenizer(patterns=(r"[\p{P}$+<=>^~|]+", _GPT2_WORDS, r"\p{N}+", "[0-9]{3}")),
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt"), _GPT2),
    **dict.fromkeys(("jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0", "mellum"), _GPT2),
    **dict.fromkeys(("roberta-bpe", "jina-v1-en", "jina-v2-code", "jina-v2-es", "jina-v2-de", "modern-bert"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _SINGLE_DIGITS),
    **dict.fromkeys(("codeshell", "exaone", "minerva-7b", "mellum2"), _SINGLE_DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("falcon3", "falcon-h1", "midm-2.0", "lfm2", "jina-v5-nano"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "f2llmv2"), _QWEN2),
    "qwen35": PreTokenizer(
        patterns=(
            _words(_DIGIT, word=r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", marks=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),
        ),
    ),
    **dict.fromkeys(("stablelm2", "megrez", "kormo", "hunyuan", "solar-open", "grok-2"), _GPT4_SINGLE_DIGITS),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _GPT4),
    **dict.fromkeys(("glm4", "glm5"), PreTokenizer(patterns=(_words(),), whole_words=True)),
    "tekken": PreTokenizer(patterns=(_cased_words("", _DIGIT),), whole_words=True, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
    "deepseek-llm": PreTokenizer(
        patterns=(
            r"[\r\n]",
            rf"\s?{_LISTED_LETTERS}",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _CHINESE_OR_KOREAN,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer(
        patterns=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE_OR_KOREAN, _DIGIT)
    ),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK_V3),
    "spark2_5": PreTokenizer(
        patterns=(_THREE_DIGITS, _CHINESE_OR_JAPANESE, _deepseek_words("", rf"[\r\n]|{_SPACES}"), _DIGIT)
    ),
    "falcon": PreTokenizer(patterns=(r"[\p{P}$+<=>^~|`]+", _GPT2_WORDS, "[0-9]{3}")),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), _NO_MARKS),
    "viking": PreTokenizer(patterns=(_NO_PUNCTUATION, _DIGIT)),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING),
    "seed-coder": PreTokenizer(patterns=(_words(_DIGIT, marks=r" ?[^\s\p{L}\p{N}\r\n]+"),)),
    "minicpm5": PreTokenizer(patterns=(_THREE_DIGITS, _words(r"\p{N}+")), whole_words=True),
    "ufakzeka": PreTokenizer(patterns=("|".join((_WORD, _DIGIT, _MARKS, _REST)),)),
}
