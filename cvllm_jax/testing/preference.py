"""What the scripted model would rather say where a grammar forbids what the script says: what ends soonest.

In JSON that is the end if it is allowed, else whatever closes: the quotation mark first, because inside a string the
brackets are text. Only right behind an opening bracket its closing one comes before the quotation mark, which would
begin a member.
"""

from __future__ import annotations

import string

import numpy as np
from jaxtyping import Float

from cvllm_jax.testing.vocabulary import VOCABULARY_SIZE

__all__ = ["BRACE", "BRACKET", "FORMS", "preference"]

#: Rows of the table: what came last is an opening brace, an opening bracket, or anything else (0).
BRACE, BRACKET, FORMS = 1, 2, 3

# Groups from the first to the last choice, with their logits; what the script says has 0. Neighbours are far enough
# apart that a temperature of 1 hardly ever takes the wrong one.
_END = -30.0
_GROUPS: tuple[tuple[float, bytes], ...] = (
    (-40.0, b'"'),
    (-46.0, b"}"),
    (-52.0, b"]"),
    (-56.0, b")>'|"),
    (-60.0, b","),  # ends a number that must be followed by something
    (-64.0, b"1"),  # not 0, which could be repeated for long where a number must be positive
    (-67.0, b"023456789"),
    (-69.5, string.ascii_letters.encode()),
    (-75.0, b"!#$%&*./:;?@^_`~+-="),
    (-78.0, b"ahH"),  # of <think>, analysis and [THINK], beside <tool_call>, final and [TOOL_CALLS]
    (-82.0, b"([{\\"),
    (-92.0, b"<"),  # may open reasoning, which has no end of its own
)
_OTHERS = -88.0  # whitespace, of which there could be any amount, and bytes that are not ASCII
_CLOSES_AT_ONCE = -35.0
_NEVER = -97.0  # control tokens and the names of lines


def preference(end: int) -> Float[np.ndarray, "F V"]:
    """Logits of every token by what came last; ``end`` is the end token."""
    row = np.full(VOCABULARY_SIZE, _NEVER, np.float32)
    row[:256] = _OTHERS
    for logit, characters in _GROUPS:
        row[list(characters)] = logit
    row[end] = _END
    table = np.tile(row, (FORMS, 1))
    table[BRACE, ord("}")] = table[BRACKET, ord("]")] = _CLOSES_AT_ONCE
    return table
