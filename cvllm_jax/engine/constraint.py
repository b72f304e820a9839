"""A grammar at work in one answer: which tokens may come next, in the form that a step takes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cvllm_jax.errors import GenerationError
from cvllm_jax.grammar.matcher import CompiledGrammar

__all__ = ["GrammarConstraint"]


class GrammarConstraint:
    """The state of one answer under a compiled grammar.

    Every method raises GrammarError where the grammar reaches one of its limits: the request cannot go on then.

    Arguments:
        min_tokens: none of ``end_tokens`` may come before this many tokens, unless the grammar leaves nothing else.
    """

    def __init__(self, grammar: CompiledGrammar, min_tokens: int, end_tokens: Iterable[int]) -> None:
        self._matcher = grammar.matcher()
        self._words = np.zeros(-(-grammar.vocabulary_size // 32), np.uint32)
        self._early = min_tokens
        self._no_ends = ~self._words
        for token in end_tokens:
            self._no_ends[token // 32] &= ~np.uint32(1 << token % 32)

    @property
    def finished(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        return self._matcher.finished

    def mask(self) -> bytes:
        """The tokens that may come next, end tokens included where the answer may end; a bit each."""
        self._matcher.mask(self._words)
        if self._early > 0 and (longer := self._words & self._no_ends).any():
            return longer.tobytes()
        return self._words.tobytes()

    def take(self, token: int) -> None:
        """Go on by a token that is no end token."""
        if not self._matcher.advance(token):
            raise GenerationError(f"token {token} was chosen, which the grammar does not allow here")
        self._early -= 1

    def forced(self) -> list[int]:
        """Tokens that must come next whatever the model says; they are not taken yet."""
        return self._matcher.forced_tokens()
