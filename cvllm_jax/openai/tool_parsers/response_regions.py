"""Where the regions of a ``response_template`` begin and end in text that arrives in pieces."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cvllm_jax.openai.tool_parsers.anchors import Anchor, Search
from cvllm_jax.openai.tool_parsers.reader import Sink, Steps, TextReader

__all__ = ["Delimiter", "RegionReader"]


@dataclass(frozen=True, slots=True)
class Delimiter:
    """The text that opens or closes a region."""

    anchor: int
    """Which of the anchors matched."""
    text: str
    groups: Mapping[str, str]


class RegionReader:
    """Reads up to whichever of some anchors comes first, longest at one place, and the first of equals.

    Text is passed on as soon as no match can begin in it any more.
    """

    def __init__(self, reader: TextReader) -> None:
        self._reader = reader
        self._at = 0
        self._again: deque[str] = deque()
        """Text that was looked at to find where a match ends, and lies behind it."""
        self._empty: set[tuple[int, int]] = set()
        """Where an anchor has matched nothing; it may do so once at a place, or it would for ever."""

    def until(self, anchors: Sequence[Anchor], sink: Sink) -> Steps[Delimiter | None]:
        """The first delimiter, after the text before it was passed on; None at the end of the text."""
        searches = [
            (index, Search(anchor)) for index, anchor in enumerate(anchors) if (self._at, id(anchor)) not in self._empty
        ]
        held: deque[str] = deque()
        dull = _cannot_begin(anchors)
        while True:
            if dull is not None and not held and not self._again and self._at:
                yield from self._reader.run(dull, lambda text: self._skip(text, sink))
            char = yield from self._next()
            for _, search in searches:
                search.step(self._at, char) if char else search.end(self._at)
            if char:
                held.append(char)
                self._at += 1
            found = [(hit.start, -hit.end, index, hit) for index, search in searches if (hit := search.found)]
            pending = min((at for _, search in searches if (at := search.pending) is not None), default=self._at + 1)
            best = min(found)[-1] if found else None
            if best is not None and (pending > best.start or not char):
                start = self._at - len(held)
                text = "".join(held)
                _pass(sink, text[: best.start - start])
                self._again.extendleft(reversed(text[best.end - start :]))
                self._at = best.end
                index = min(found)[2]
                if best.start == best.end:
                    self._empty.add((best.end, id(anchors[index])))
                groups = {name: text[at - start : end - start] for name, (at, end) in best.groups.items()}
                return Delimiter(index, text[best.start - start : best.end - start], groups)
            certain = min(pending, best.start) if best is not None else pending
            count = len(held) if not char else max(0, min(len(held), certain - self._at + len(held)))
            _pass(sink, "".join(held.popleft() for _ in range(count)))
            if not char:
                return None

    def _next(self) -> Steps[str]:
        if self._again:
            return self._again.popleft()
        return self._reader.take() if (yield from self._reader.peek()) else ""

    def _skip(self, text: str, sink: Sink) -> None:
        self._at += len(text)
        sink(text)


def _pass(sink: Sink, text: str) -> None:
    if text:
        sink(text)


def _cannot_begin(anchors: Sequence[Anchor]) -> re.Pattern[str] | None:
    """Characters that begin no match; None where a match may begin without any, or at every one."""
    firsts: set[str] = set()
    for anchor in anchors:
        found = anchor.first_characters()
        if found is None:
            return None
        firsts |= found
    return re.compile(rf"(?:(?!{'|'.join(sorted(firsts))}).)*", re.DOTALL) if firsts else re.compile(".*", re.DOTALL)
