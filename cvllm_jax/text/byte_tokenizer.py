"""A tokenizer for models without one: every byte is a token, and the rest of the vocabulary is filled up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from cvllm_jax.errors import ModelLoadError
from cvllm_jax.text.token_bytes import BYTE_OF_CHARACTER
from cvllm_jax.text.tokenizer import Tokenizer

__all__ = ["BYTE_CHAT_TEMPLATE", "byte_level_tokenizer", "byte_tokenizer"]

#: Each message on a line behind its role; answers end with the end-of-sequence token.
BYTE_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

_END = "<|end|>"


def byte_tokenizer(vocab_size: int) -> Tokenizer:
    """Ids 0 to 255 are bytes, the last id ends a sequence, and those between spell their number.

    Any text encodes to its UTF-8 bytes and back. Nothing encodes to the numbers, but they decode to text as long as
    that of a real vocabulary's tokens.

    Raises:
      ModelLoadError: the vocabulary has no room for all bytes and the end.
    """
    if vocab_size < 257:
        raise ModelLoadError(f"a vocabulary of bytes needs at least 257 tokens, and this model has {vocab_size}")
    space = next(character for character, byte in BYTE_OF_CHARACTER.items() if byte == ord(" "))
    numbers = {f"{space}{token}": token for token in range(256, vocab_size - 1)}
    return byte_level_tokenizer([_END], {"eos_token": _END}, numbers)


def byte_level_tokenizer(
    control_tokens: Iterable[str], special_tokens: Mapping[str, str], others: Mapping[str, int] | None = None
) -> Tokenizer:
    """Ids 0 to 255 are bytes; ``others`` follow, with ids of their own from 256 on, then the control tokens in order.

    Arguments:
        special_tokens: which control token templates know as ``eos_token`` and the like.
        others: tokens that nothing encodes to, written in the characters of byte-level vocabularies.
    """
    backend = tokenizers.Tokenizer(models.BPE(vocab=BYTE_OF_CHARACTER | dict(others or {}), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [tokenizers.AddedToken(token, normalized=False, special=True) for token in control_tokens]
    )
    return Tokenizer(backend, special_tokens=special_tokens, adds_bos=False)
