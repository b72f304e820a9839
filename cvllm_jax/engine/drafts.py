"""Guesses at how an answer goes on, to be verified in one step: prompt lookup.

A sequence that has come to the same few tokens before probably goes on as it did then: quotations, code that is edited,
names, tables (Saxena 2023, "Prompt Lookup Decoding"). A guess costs the device a row and the host nothing much. What it
cannot do is change an answer: a drafted token is kept if it is the one that its position's own draw gives.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens

__all__ = ["PromptLookup"]

#: Lengths of the runs of tokens that are looked up, the surest first.
LENGTHS = (4, 2)

#: Tokens without drafts after the first failure in a row; each further failure doubles it, to at most the second.
SHORTEST_PAUSE, LONGEST_PAUSE = 1, 32

#: The same after so many lookups in a row that found nothing: to look, the host waits for the last token.
LOOKUPS, LOOKUP_PAUSE = 8, 8


class PromptLookup:
    """Drafts for one sequence: what followed the latest earlier place with the same last tokens.

    Drafts grow while they are kept whole and shrink to what was kept otherwise; after drafts of which nothing was kept
    there are none for a while, so that text which does not repeat itself costs little.

    Arguments:
      most: tokens of a draft.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._length = min(most, 3)
        self._failures = self._misses = 0
        self._resumes = 0  # at so many tokens
        self._indexed = 0
        self._after: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in LENGTHS)

    def ready(self, length: int) -> bool:
        """Whether there may be a draft for a sequence of so many tokens."""
        return length >= self._resumes

    def propose(self, tokens: Tokens[int], room: int) -> tuple[int, ...]:
        """At most ``room`` tokens that may follow; none if the last ones are new.

        Arguments:
          tokens: all of the sequence; those of the last call and more.
        """
        room = min(room, self._length)
        if room < 1 or not self.ready(len(tokens)):
            return ()
        for end in range(max(self._indexed, 1), len(tokens)):  # the last tokens are no place to look them up at
            for length, after in zip(LENGTHS, self._after, strict=True):
                if end >= length:
                    after[tuple(tokens[end - length : end])] = end
        self._indexed = len(tokens)
        for length, after in zip(LENGTHS, self._after, strict=True):
            found = after.get(tuple(tokens[-length:])) if len(tokens) > length else None
            if found is not None:
                self._misses = 0
                period = len(tokens) - found  # near the end what repeats is short, and goes on repeating
                return tuple(tokens[found + ahead % period] for ahead in range(room))
        self._misses += 1
        self._resumes = len(tokens) + min(self._misses // LOOKUPS, LOOKUP_PAUSE)
        return ()

    def learn(self, drafted: int, kept: int, length: int) -> None:
        """Take in how many of a draft's tokens were kept.

        Arguments:
          length: tokens of the sequence now.
        """
        if kept == drafted:
            self._length = min(2 * self._length, self._most)
        elif kept:
            self._length = kept
        else:
            self._length = 1
            self._resumes = length + min(SHORTEST_PAUSE << self._failures, LONGEST_PAUSE)
        self._failures = 0 if kept else self._failures + 1
