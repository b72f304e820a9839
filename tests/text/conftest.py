"""Vocabularies small enough to build in a test, as GGUF files and as ``tokenizer.json``."""

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from cvllm_jax import text
from cvllm_jax.checkpoints.demo import DEMO_INSTALL_COMMAND, find_demo_model

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ["1 2", "12 3", "123 4", "h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "' S", "i m", "< |"]
PIECES = ["h", "e", "l", "o", "he", "ll", "hell", "hello", "▁", "▁hello", "▁w", "w", "▁▁", "é", "<", ">", "s", "|"]


def _byte_level_vocabulary() -> list[str]:
    """All bytes, what the merges make, a user-defined token and control tokens."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += [merge.replace(" ", "") for merge in MERGES]
    return [*tokens, "<tool>", *SPECIALS]


def _write_gguf(path: Path, model: str, tokens: list[str], types: list[int], **keys: object) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in keys.items():
        key = f"tokenizer.ggml.{name}"
        if name == "chat_template":
            writer.add_chat_template(value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """Writes a vocabulary: path, model, tokens, token types (1 normal, 3 control), further ``tokenizer.ggml`` keys."""
    return _write_gguf


@pytest.fixture(scope="session")
def byte_level_gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a byte-level BPE vocabulary with the given pre-tokenizer."""

    def write(pre: str = "gpt-2", **keys: object) -> Path:
        tokens = _byte_level_vocabulary()
        types = [NORMAL] * (len(tokens) - 4) + [USER_DEFINED] + [CONTROL] * 3
        settings = {
            "merges": MERGES,
            "pre": pre,
            "bos_token_id": tokens.index("<|im_start|>"),
            "eos_token_id": tokens.index("<|im_end|>"),
        } | keys
        return _write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", "gpt2", tokens, types, **settings)

    return write


@pytest.fixture(scope="session")
def sentencepiece_gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a SentencePiece vocabulary; the score of a piece is its length."""

    def write(**keys: object) -> Path:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
        types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(PIECES)]
        settings = {
            "scores": [0.0] * 259 + [float(len(piece)) for piece in PIECES],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "unknown_token_id": 0,
        } | keys
        return _write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", "llama", tokens, types, **settings)

    return write


def _prefix_once_backend() -> Tokenizer:
    """As Mistral's later tokenizers: a space is put in front of the text, but not after control tokens."""
    tokens = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("▁", "w"), ("▁", "▁")]
    backend = Tokenizer(
        BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens[:5]])
    return backend


@pytest.fixture(scope="session")
def prefix_once_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    _prefix_once_backend().save(str(path))
    return path


@pytest.fixture(scope="session")
def tokenizers(
    byte_level_gguf: Callable[..., Path], sentencepiece_gguf: Callable[..., Path], prefix_once_json: Path
) -> dict[str, text.Tokenizer]:
    """One of each kind."""
    return {
        "byte-level": text.Tokenizer.from_gguf(byte_level_gguf("llama-bpe")),
        "sentencepiece": text.Tokenizer.from_gguf(sentencepiece_gguf()),
        "prefix once": text.Tokenizer.from_file(prefix_once_json),
    }


@pytest.fixture(scope="session")
def demo() -> text.Tokenizer:
    path = find_demo_model()
    if path is None:
        pytest.skip(f"the demo model is not installed: {DEMO_INSTALL_COMMAND}")
    return text.Tokenizer.from_gguf(path)
