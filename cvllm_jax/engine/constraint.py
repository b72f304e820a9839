"""A grammar at work in one answer: which tokens may come next, in the form that a step takes."""

from __future__ import annotations

import numpy as np

from cvllm_jax.errors import GenerationError
from cvllm_jax.grammar.matcher import CompiledGrammar

__all__ = ["GrammarConstraint"]


class GrammarConstraint:
    """The state of one answer under a compiled grammar.

    Every method raises GrammarError where the grammar reaches one of its limits: the request cannot go on then.
    """

    def __init__(self, grammar: CompiledGrammar) -> None:
        self._matcher = grammar.matcher()
        self._words = np.zeros(-(-grammar.vocabulary_size // 32), np.uint32)

    @property
    def finished(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        return self._matcher.finished

    def mask(self) -> bytes:
        """The tokens that may come next, end tokens included where the answer may end; a bit each."""
        self._matcher.mask(self._words)
        return self._words.tobytes()

    def take(self, token: int) -> None:
        """Go on by a token that is no end token."""
        if not self._matcher.advance(token):
            raise GenerationError(f"token {token} was chosen, which the grammar does not allow here")

    def forced(self) -> list[int]:
        """Tokens that must come next whatever the model says; they are not taken yet."""
        return self._matcher.forced_tokens()
