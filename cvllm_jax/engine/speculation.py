"""Which sequences have drafts in a step, and what comes of them; the drafts are :mod:`cvllm_jax.engine.drafts`'s."""

from __future__ import annotations

from collections.abc import Sequence as Items

from cvllm_jax.engine.drafts import PromptLookup
from cvllm_jax.engine.paging import Paging
from cvllm_jax.engine.sequence import Sequence, State

__all__ = ["Speculation"]


class Speculation:
    """Hands out the rows of decode steps that drafts may have, and counts drafts.

    Drafts fill the step that the sequences need anyway, or the one that a single sequence's drafts need: larger steps
    take longer.

    Arguments:
      most: tokens that are drafted for a sequence at most; 0 for none.
      rows: sizes of decode steps, in order.
      paging: where drafts have pages from.
    """

    def __init__(self, most: int, rows: Items[int], paging: Paging) -> None:
        self.enabled = most > 0
        self.drafted_tokens = self.accepted_tokens = 0
        self._most = most
        self._rows = tuple(rows)
        self._paging = paging

    def join(self, sequence: Sequence) -> None:
        """Draft for a new sequence, unless what a row may choose depends on the rows before it."""
        if self.enabled and not sequence.tracks_tokens and sequence.constraint is None:
            sequence.drafts = PromptLookup(self._most)

    def room(self, running: int) -> int:
        """Rows for drafts beside so many sequences."""
        if not self.enabled:
            return 0
        wanted = max(running, 1 + self._most)
        return next((rows for rows in self._rows if rows >= wanted), self._rows[-1]) - running

    def waits(self, running: Items[Sequence]) -> bool:
        """Whether the next plan depends on tokens that are not read: how many drafts were right, or what comes last."""
        if not self.enabled:
            return False
        room = self.room(len(running))
        return any(sequence.drafted or (room and self._may_draft(sequence)) for sequence in running)

    def _may_draft(self, sequence: Sequence) -> bool:
        return sequence.drafts is not None and sequence.prefilled and sequence.drafts.ready(sequence.length)

    def draft(self, sequence: Sequence, room: int) -> tuple[int, ...]:
        """Guesses at the next tokens, if all before them are known and there are pages for them without preemption."""
        room = min(room, sequence.max_tokens - sequence.num_generated - 1)
        if room < 1 or sequence.pending or not self._may_draft(sequence):
            return ()
        assert sequence.drafts is not None
        drafts = sequence.drafts.propose(sequence.tokens, room)
        return drafts if self._paging.grow(sequence, 1 + len(drafts)) else ()

    def keep(self, sequence: Sequence, tokens: int) -> None:
        """A step with drafts chose so many tokens: one, and one for each draft that was right."""
        drafted, sequence.drafted = sequence.drafted, 0
        if sequence.state is not State.RUNNING:
            return
        assert sequence.drafts is not None
        kept = tokens - 1
        sequence.computed -= drafted - kept
        sequence.pending += kept
        sequence.drafts.learn(drafted, kept, len(sequence.tokens) + tokens)
        self.drafted_tokens += drafted
        self.accepted_tokens += kept
