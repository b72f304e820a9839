"""Vocabularies and compilers of several kinds."""

import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from cvllm_jax.checkpoints.demo import DEMO_INSTALL_COMMAND, find_demo_model
from cvllm_jax.grammar.compiler import GrammarCompiler
from cvllm_jax.text import Tokenizer

sys.path.append(str(Path(__file__).parent))  # for answers.py; importlib mode adds no folder by itself

SPECIAL = ["<|end|>", "<|call|>", "<think>", "</think>"]
PIECES = [
    '{"', '":', '": ', '", "', '"}', '"]', "},", "\\n", "\\u00", "tr", "ue", "12", "00", "e+", "  ", ",\n", "name", "é",
]  # fmt: skip


def byte_level() -> Backend:
    """Every byte, and merges of what JSON is made of."""
    write = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for piece in PIECES:
        whole = write.pre_tokenize_str(piece)[0][0]
        for end in range(2, len(whole) + 1):
            merge = (whole[: end - 1], whole[end - 1])
            if whole[:end] not in tokens:
                tokens[whole[:end]] = len(tokens)
                merges.append(merge)
    backend = Backend(BPE(tokens, merges))
    backend.pre_tokenizer, backend.decoder = write, decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
    backend.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return backend


def sentencepiece() -> Backend:
    """As Llama 2's: a space in front of every text, bytes for what the vocabulary lacks."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "{", "}", '"', ":", ",", "▁{", '▁"', '":', "▁▁"]
    tokens += [character for character in "abcdefghijklmnopqrstuvwxyz0123456789[]" if character not in tokens]
    merges = [("▁", "{"), ("▁", '"'), ('"', ":"), ("▁", "▁")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Backend(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ["<unk>", *SPECIAL]])
    return backend


def end_of(tokenizer: Tokenizer) -> int:
    return next(token for token, name in tokenizer.control_tokens.items() if name == "<|end|>")


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Tokenizer]:
    return {"byte-level": Tokenizer(byte_level()), "sentencepiece": Tokenizer(sentencepiece())}


@pytest.fixture(scope="session")
def compilers(tokenizers: dict[str, Tokenizer]) -> dict[str, GrammarCompiler]:
    """By kind of vocabulary; the models have some logits more than the vocabulary has tokens."""
    return {
        kind: GrammarCompiler(tokenizer, [end_of(tokenizer)], tokenizer.vocab_size + 13)
        for kind, tokenizer in tokenizers.items()
    }


@pytest.fixture(scope="session")
def tokenizer(tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers["byte-level"]


@pytest.fixture(scope="session")
def compiler(compilers: dict[str, GrammarCompiler]) -> GrammarCompiler:
    return compilers["byte-level"]


@pytest.fixture(scope="session")
def end(tokenizer: Tokenizer) -> int:
    return end_of(tokenizer)


@pytest.fixture(scope="session")
def demo() -> tuple[Tokenizer, GrammarCompiler]:
    path = find_demo_model()
    if path is None:
        pytest.skip(f"the demo model is not installed: {DEMO_INSTALL_COMMAND}")
    tokenizer = Tokenizer.from_gguf(path)
    return tokenizer, GrammarCompiler(tokenizer, [tokenizer.eos_token_id], tokenizer.vocab_size)
