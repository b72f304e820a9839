"""A grammar ready for use, and where one answer stands in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from cvllm_jax.grammar.errors import GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["CompiledGrammar", "Matcher"]

# Why a grammar stops that has been followed to its end. Any other reason is a limit or a fault.
_ENDS = frozenset({"NotStopped", "NoExtension", "NoExtensionBias", "EndOfSentence"})

# What an answer may take to go on with a new automaton: every other answer waits for its mask meanwhile.
RENEWAL_SECONDS = 0.1


class CompiledGrammar:
    """A grammar ready for use by any number of answers at once.

    Its answers share an automaton, which grows as they are written. When it has reached its limit it stays there, so
    an answer that meets the limit goes on with a new one, unless that takes longer than ``RENEWAL_SECONDS``: it ends
    then, and :meth:`prepare` makes the new one for the next answers.
    """

    def __init__(self, build: Callable[[], LLMatcher], vocabulary_size: int, end_tokens: frozenset[int]) -> None:
        self._build = build
        began = time.monotonic()
        self._state: LLMatcher | None = build()
        self.build_seconds = time.monotonic() - began
        self._generation = 0
        self._lock = threading.Lock()
        self.vocabulary_size = vocabulary_size
        self.end_tokens = end_tokens

    def matcher(self) -> Matcher:
        """The state of a new answer."""
        return Matcher(self)

    def prepare(self) -> None:
        """Have an automaton for new answers. It takes as long as compiling where the last one has reached its limit."""
        with self._lock:
            if self._state is None:
                self._state = self._build()

    def start(self) -> tuple[LLMatcher, int]:
        """A state at the beginning, and the generation of its automaton."""
        with self._lock:
            if self._state is None:
                self._state = self._build()
            return self._state.deep_copy(), self._generation

    def retire(self, generation: int) -> None:
        """This automaton has reached its limit: the next answer begins with another."""
        with self._lock:
            if generation == self._generation:
                self._state = None
                self._generation += 1


class Matcher:
    """The state of one answer. Use it from one thread at a time; its masks are made without the GIL.

    Make a mask before each token that is not forced: it is masks that renew the engine's budget of work. Every method
    raises :class:`GrammarError` when the grammar has reached a limit or a dead end; the answer cannot go on then.
    """

    def __init__(self, grammar: CompiledGrammar) -> None:
        self._grammar = grammar
        self._state, self._generation = grammar.start()
        self._tokens: list[int] = []
        self._ended = False  # by an end token after the grammar was finished, which the engine does not know of
        self._words = (grammar.vocabulary_size + 31) // 32

    def mask(self, out: NDArray[np.uint32]) -> None:
        """Write which tokens may come next; where the text is forced, only the token that usually writes it.

        Arguments:
            out: ``[ceil(V / 32)]``, contiguous; token ``t`` is bit ``t % 32`` of word ``t // 32``. End tokens are
                allowed where the grammar accepts an end, and nothing else is when it is finished.
        """
        if out.shape != (self._words,) or out.dtype != np.uint32 or not out.flags.c_contiguous:
            raise ValueError(f"a mask needs a contiguous uint32 array of {self._words} words")
        self._fill(out)
        if self._failed():
            self._renew()
            self._fill(out)
            self._check()
        if not out.any():
            raise GrammarError("the grammar has come to a point that no token of this vocabulary continues")

    def advance(self, token: int) -> bool:
        """Take a token; false, and nothing has changed, if the grammar does not allow it."""
        if self.finished:  # the engine takes nothing more then, though its masks allow the end
            ends = token in self._grammar.end_tokens and not self._ended
            self._ended |= ends
            return ends
        taken = self._state.try_consume_tokens([token])
        if self._failed():
            self._renew()
            taken = self._state.try_consume_tokens([token])
            self._check()
        if taken:
            self._tokens.append(token)
        return taken == 1

    def forced_tokens(self) -> list[int]:
        """The tokens that have to come next whatever the model says, often none. They are not taken yet."""
        tokens: list[int] = self._state.compute_ff_tokens()
        if self._failed():
            self._renew()
            tokens = self._state.compute_ff_tokens()
            self._check()
        return tokens

    def rollback(self, count: int) -> None:
        """Take back the last tokens, at most as many as were taken."""
        taken = len(self._tokens) + self._ended
        if not 0 <= count <= taken:
            raise ValueError(f"of {taken} tokens {count} cannot be taken back")
        if self._ended and count:
            self._ended = False
            count -= 1
        if not count:
            return
        del self._tokens[-count:]
        if not self._state.rollback(count):
            self._renew()

    def copy(self) -> Self:
        """An independent matcher in the same state."""
        copied = type(self)(self._grammar)
        copied._state, copied._generation = self._state.deep_copy(), self._generation
        copied._tokens, copied._ended = self._tokens.copy(), self._ended
        return copied

    @property
    def accepts_end(self) -> bool:
        """Whether the answer so far is whole."""
        return bool(self._state.is_accepting())

    @property
    def finished(self) -> bool:
        """Whether the answer is whole and nothing may follow but an end token."""
        return bool(self._state.is_stopped())

    def _fill(self, out: NDArray[np.uint32]) -> None:
        self._state.unsafe_compute_mask_ptr(out.ctypes.data, out.nbytes)

    def _failed(self) -> bool:
        if not self._state.is_error() and self._state.stop_reason() in _ENDS:
            return False
        self._grammar.retire(self._generation)
        return True

    def _check(self) -> None:
        if self._failed():
            reason = self._state.get_error() or self._state.stop_reason()
            raise GrammarError(f"the grammar cannot be followed further: {reason.strip().splitlines()[0]}")

    def _renew(self) -> None:
        """Come to the same state with another automaton: this one has reached its limit, perhaps by other answers."""
        if self._grammar.build_seconds > RENEWAL_SECONDS:
            self._check()
        self._state, self._generation = self._grammar.start()
        out = np.zeros(self._words, np.uint32)
        deadline = time.monotonic() + RENEWAL_SECONDS
        for token in self._tokens:
            self._fill(out)
            self._state.try_consume_tokens([token])
            if time.monotonic() > deadline:
                raise GrammarError("the grammar cannot be followed further: the answer is too long to begin it anew")
        self._check()
