"""Vocabularies and compilers of several kinds."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # modules that these tests share; importlib mode adds no folder by itself

from vocabularies import byte_level, end_of, sentencepiece

from cvllm_jax.checkpoints.demo import DEMO_INSTALL_COMMAND, find_demo_model
from cvllm_jax.grammar.compiler import GrammarCompiler
from cvllm_jax.text import Tokenizer


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
