"""Vocabularies small enough to build in a test."""

from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from cvllm_jax.text import Tokenizer

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
