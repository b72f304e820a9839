"""Patterns that are searched for, as patterns of whole texts: the terminals of a grammar match from end to end."""

from __future__ import annotations

import itertools
import re

from cvllm_jax.errors import shown
from cvllm_jax.grammar.errors import GrammarError

__all__ = ["whole_text"]

# Of a pattern in Rust's syntax: an escape, a class, the beginning of a group, or a character.
_PIECE = re.compile(
    r"\\(?:x\{[^}]*\}|[pP]\{[^}]*\}|.)|\[\^?(?:\[[^\]]*\]|\\.|[^\[\]\\])*\]|\(\?[a-z]*:|.", re.DOTALL
)


def whole_text(pattern: str) -> str:
    """A pattern for every whole text in which ``pattern``, in Rust's syntax, has a match: one without anchors.

    Raises:
        GrammarError: it has an anchor other than at the ends of an alternative.
    """
    return "|".join(map(_unanchored, _alternatives(pattern)))


def _alternatives(pattern: str) -> list[str]:
    """What stands between the bars that are in no group and no class."""
    parts, depth = [""], 0
    for piece in _PIECE.findall(pattern):
        depth += piece.startswith("(") - (piece == ")")
        if piece == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _unanchored(branch: str) -> str:
    pieces = _PIECE.findall(branch)
    begins, ends = pieces[:1] == ["^"], pieces[-1:] == ["$"]
    inside = pieces[begins : len(pieces) - ends]
    if "^" not in inside and "$" not in inside:
        return f"{'' if begins else '(?s:.*)'}{''.join(inside)}{'' if ends else '(?s:.*)'}"
    depths = list(itertools.accumulate(piece.startswith("(") - (piece == ")") for piece in inside))
    if begins or ends or inside[0] != "(?:" or 0 in depths[:-1] or depths[-1]:
        raise GrammarError(f"the pattern {shown(branch)} has an anchor within a part of it, which is not supported")
    return f"(?:{whole_text(''.join(inside[1:-1]))})"
