"""The scripted model's vocabulary: bytes, then control tokens, then a token for each line of a script.

The tokenizer does not know the tokens of lines: no text spells one, and in text they are nothing.
"""

from __future__ import annotations

from cvllm_jax.errors import ModelLoadError
from cvllm_jax.testing.script import MAX_RULES, Script
from cvllm_jax.text import Tokenizer
from cvllm_jax.text.byte_tokenizer import byte_level_tokenizer

__all__ = ["FIRST_LINE", "MAX_LINES", "VOCABULARY_SIZE", "line_token", "scripted_tokenizer"]

MAX_CONTROL_TOKENS = 64
FIRST_LINE = 256 + MAX_CONTROL_TOKENS
MAX_LINES = MAX_RULES + 1  # one of them is the default

#: The same for every script, so that all scripts share their compiled steps.
VOCABULARY_SIZE = FIRST_LINE + MAX_LINES


def line_token(line: int) -> int:
    """The token that names a line of the script."""
    return FIRST_LINE + line


def scripted_tokenizer(script: Script) -> Tokenizer:
    """Ids 0 to 255 are bytes, and the script's control tokens follow.

    Raises:
      ModelLoadError: the script has too many control tokens, or one that is a single character.
    """
    control = script.control_tokens
    if len(control) > MAX_CONTROL_TOKENS:
        raise ModelLoadError(f"the script has {len(control)} control tokens; {MAX_CONTROL_TOKENS} are the most")
    if short := [token for token in control if len(token) == 1]:
        raise ModelLoadError(f"the script's control token {short[0]!r} must be longer than one character")
    return byte_level_tokenizer(control, {"eos_token": script.eos_token})
