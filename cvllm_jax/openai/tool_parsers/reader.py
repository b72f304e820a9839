"""Reading text that arrives in pieces.

A parser is written as a generator that reads its text from front to back, as if all of it were there; where the
text has not arrived yet the generator yields and is resumed after the next piece. So how the text is cut cannot
change what is read.

What was read is never kept here, and never more than the length of a marker is looked at without being read.
That keeps the work linear in the length of the text, even one character at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence

__all__ = ["SPACES", "Sink", "Steps", "TextReader", "discard"]

type Steps[T] = Generator[None, None, T]
"""A part of a parser that yields while it waits for text and returns a ``T``."""

type Sink = Callable[[str], object]
"""Where text goes that was read."""

SPACES = re.compile(r"\s*")


def discard(text: str) -> None:
    """A sink for text that has no use."""


class TextReader:
    """The text of one answer, read from front to back."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._ended = False
        self._held: list[str] | None = None

    def feed(self, text: str) -> None:
        self._text = self._text[self._at :] + text
        self._at = 0

    def end(self) -> None:
        """Say that no text follows."""
        self._ended = True

    def hold(self) -> None:
        """Remember what is read from here on, for :meth:`release`."""
        self._held = []

    def release(self) -> str:
        """What was read since :meth:`hold`; it is no longer remembered."""
        held, self._held = self._held, None
        return "".join(held or ())

    def peek(self) -> Steps[str]:
        """The next character, not read yet; empty at the end of the text."""
        while self._at == len(self._text):
            if self._ended:
                return ""
            yield
        return self._text[self._at]

    def take(self, count: int = 1) -> str:
        """Read ``count`` characters that are known to be there."""
        text = self._text[self._at : self._at + count]
        self._at += len(text)
        if self._held is not None:
            self._held.append(text)
        return text

    def literal(self, *options: str, cut: bool = False) -> Steps[str | None]:
        """Read the option that comes next and return it; None, with nothing read, if none does.

        No option may begin with another one. With ``cut`` the beginning of an option at the end of the text will do.
        """
        longest = max(map(len, options))
        while True:
            rest = self._text[self._at : self._at + longest]
            for option in options:
                if rest.startswith(option):
                    return self.take(len(option))
            begun = next((option for option in options if option.startswith(rest)), None)
            if begun is None:
                return None
            if self._ended:
                return begun if cut and self.take(len(rest)) else None
            yield

    def run(self, pattern: re.Pattern[str], sink: Sink) -> Steps[None]:
        """Pass on characters as long as ``pattern``, one class of characters repeated, matches them."""
        while True:
            match = pattern.match(self._text, self._at)
            if match is not None and match.end() > self._at:
                sink(self.take(match.end() - self._at))
            if self._at < len(self._text) or self._ended:
                return
            yield

    def spaces(self) -> Steps[None]:
        """Read whitespace."""
        yield from self.run(SPACES, discard)

    def until(self, markers: Sequence[str], sink: Sink, *, cut: Sink | None = None) -> Steps[str | None]:
        """Pass on text up to the first marker, which is returned and not read yet; None at the end of the text.

        ``cut`` takes a marker of which the text has only the beginning at its end; without it that is text too.
        """
        firsts = {marker[0] for marker in markers}
        while True:
            at, marker = self._find(markers)
            unfinished = self._unfinished(markers, firsts) if cut is not None or not self._ended else len(self._text)
            end = min(at, unfinished)
            if end > self._at:
                sink(self.take(end - self._at))
            if marker is not None and (at <= unfinished or self._ended):
                return marker
            if self._ended:
                if cut is not None:
                    cut(self.take(len(self._text) - self._at))
                return None
            yield

    def _find(self, markers: Sequence[str]) -> tuple[int, str | None]:
        """Where the first whole marker is; of two at one place the longer."""
        found = [(at, -len(marker), marker) for marker in markers if (at := self._text.find(marker, self._at)) >= 0]
        if not found:
            return len(self._text), None
        at, _, marker = min(found)
        return at, marker

    def _unfinished(self, markers: Sequence[str], firsts: set[str]) -> int:
        """Where the longest end of the text is that may become a marker."""
        longest = max(map(len, markers))
        for at in range(max(self._at, len(self._text) - longest + 1), len(self._text)):
            if self._text[at] in firsts:
                rest = self._text[at:]
                if any(len(rest) < len(marker) and marker.startswith(rest) for marker in markers):
                    return at
        return len(self._text)
