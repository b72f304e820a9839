"""The scripted model's vocabulary: bytes, then a token for each line of a script, then control tokens."""

from __future__ import annotations

from cvllm_jax.errors import ModelLoadError
from cvllm_jax.testing.script import MAX_RULES, Script
from cvllm_jax.text import Tokenizer
from cvllm_jax.text.byte_tokenizer import byte_level_tokenizer

__all__ = ["FIRST_LINE", "MAX_LINES", "VOCABULARY_SIZE", "line_token", "scripted_tokenizer"]

FIRST_LINE = 256
MAX_LINES = MAX_RULES + 1  # one of them is the default
MAX_CONTROL_TOKENS = 64

#: The same for every script, so that all scripts share their compiled steps.
VOCABULARY_SIZE = FIRST_LINE + MAX_LINES + MAX_CONTROL_TOKENS


def line_token(line: int) -> int:
    """The token that names a line of the script."""
    return FIRST_LINE + line


def scripted_tokenizer(script: Script) -> Tokenizer:
    """Ids 0 to 255 are bytes.

    Raises:
      ModelLoadError: the script has too many control tokens, or one that is a single byte or names a line.
    """
    lines = [f"<|line_{line}|>" for line in range(MAX_LINES)]
    control = script.control_tokens
    if len(control) > MAX_CONTROL_TOKENS:
        raise ModelLoadError(f"the script has {len(control)} control tokens; {MAX_CONTROL_TOKENS} are the most")
    if taken := [token for token in control if len(token) == 1 or token in lines]:
        raise ModelLoadError(f"the script's control token {taken[0]!r} is a token already")
    return byte_level_tokenizer([*lines, *control], {"eos_token": script.eos_token})
