"""Finding patterns in text that arrives character by character."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cvllm_jax.openai.tool_parsers.anchor_syntax import (
    Begin,
    Char,
    End,
    Match,
    Program,
    Save,
    Split,
    compile_pattern,
)

__all__ = ["Anchor", "Found", "Search", "find_all"]

type _Saves = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Anchor:
    """A compiled pattern."""

    program: Program
    literals: tuple[str, ...] = ()
    """What the pattern matches, where that is known."""
    source: str = ""
    """The pattern, where there are no literals."""

    @classmethod
    def of_pattern(cls, pattern: str) -> Anchor:
        """Raises ModelLoadError for a pattern that is not supported."""
        return cls(compile_pattern(pattern), source=pattern)

    @classmethod
    def of_literals(cls, literals: Sequence[str]) -> Anchor:
        """Any of ``literals``, the longer one where two begin alike."""
        ordered = tuple(sorted(literals, key=len, reverse=True))
        return cls(compile_pattern("|".join(map(re.escape, ordered))), ordered)

    @property
    def groups(self) -> set[str]:
        """The names of the pattern's groups."""
        return {step.name for step in self.program if isinstance(step, Save)}

    def first_characters(self) -> set[str] | None:
        """Patterns of the characters that a match behind the text's beginning can begin with; None if of none."""
        firsts: set[str] = set()
        todo, seen = [0], set[int]()
        while todo:
            place = todo.pop()
            if place in seen:
                continue
            seen.add(place)
            match self.program[place]:
                case Char(source=source):
                    firsts.add(source)
                case Split(first, second):
                    todo += [place + first, place + second]
                case Save():
                    todo.append(place + 1)
                case Begin():
                    pass
                case End() | Match():
                    return None
        return firsts

    def after_last(self, text: str) -> str:
        """What follows the last match in ``text``; nothing if there is none."""
        if self.literals:
            end = max((at + len(one) for one in self.literals if (at := text.rfind(one)) >= 0), default=len(text))
        else:
            end = max((found.end for found in find_all(self, text)), default=len(text))
        return text[end:]


@dataclass(frozen=True, slots=True)
class Found:
    """Where a pattern has matched: from ``start`` up to, not with, ``end``; and where its groups have."""

    start: int
    end: int
    groups: Mapping[str, tuple[int, int]]


class Search:
    """The first match of an anchor, the one that Python's ``re.search`` finds.

    All ways to match are followed at once, in order of preference, so the work for a character is bounded by the size
    of the pattern.
    """

    def __init__(self, anchor: Anchor) -> None:
        self._program = anchor.program
        self._threads: list[tuple[int, int, _Saves]] = []
        """Place in the program, where the match begins, groups; the preferred first."""
        self.found: Found | None = None
        """The best match up to now; final when nothing is :attr:`pending`."""

    @property
    def pending(self) -> int | None:
        """Where the first of the unfinished matches begins."""
        return min((start for _, start, _ in self._threads), default=None)

    def step(self, at: int, char: str) -> None:
        """Look at the character at the place ``at``; 0 is the beginning of the text."""
        self._begin(at, ended=False)
        threads: list[tuple[int, int, _Saves]] = []
        seen: set[int] = set()
        for place, start, saves in self._threads:
            step = self._program[place]
            if isinstance(step, Char) and step.accepts.match(char):
                self._follow(threads, seen, (place + 1, start, saves), at + 1, ended=False)
        self._threads = threads
        self._settle(at + 1)

    def end(self, at: int) -> None:
        """The text ends at the place ``at``."""
        self._begin(at, ended=True)
        threads: list[tuple[int, int, _Saves]] = []
        seen: set[int] = set()
        for thread in self._threads:
            self._follow(threads, seen, thread, at, ended=True)
        self._threads = threads
        self._settle(at)
        self._threads = []

    def _begin(self, at: int, *, ended: bool) -> None:
        """A match may begin here too, if none has been found that begins earlier."""
        if self.found is None:
            self._follow(self._threads, {place for place, _, _ in self._threads}, (0, at, ()), at, ended=ended)
            self._settle(at)

    def _follow(
        self,
        threads: list[tuple[int, int, _Saves]],
        seen: set[int],
        thread: tuple[int, int, _Saves],
        at: int,
        *,
        ended: bool,
    ) -> None:
        """Add the places that read a character, or match, reachable from ``thread``."""
        todo = [thread]
        while todo:
            place, start, saves = todo.pop()
            step = self._program[place]
            if place in seen:
                continue
            seen.add(place)
            match step:
                case Split(first, second):
                    todo += [(place + second, start, saves), (place + first, start, saves)]
                case Save(name, is_end):
                    key = f"/{name}" if is_end else name
                    kept = (entry for entry in saves if entry[0] != key)
                    todo.append((place + 1, start, (*kept, (key, at))))
                case Begin():
                    if at == 0:
                        todo.append((place + 1, start, saves))
                case End() if ended:
                    todo.append((place + 1, start, saves))
                case End() | Char() | Match():
                    threads.append((place, start, saves))

    def _settle(self, at: int) -> None:
        """A match ends all ways that are less preferred."""
        for index, (place, start, saves) in enumerate(self._threads):
            if isinstance(self._program[place], Match):
                places = dict(saves)
                groups = {key[1:]: (places[key[1:]], end) for key, end in saves if key[0] == "/"}
                self.found = Found(start, at, groups)
                del self._threads[index:]
                return


def find_all(anchor: Anchor, text: str) -> Iterator[Found]:
    """All matches in ``text``, one after the other, as ``re.finditer`` finds them."""
    at = 0
    while at <= len(text):
        search = Search(anchor)
        for place in range(at, len(text)):
            search.step(place, text[place])
            if search.found is not None and search.pending is None:
                break
        else:
            search.end(len(text))
        if search.found is None:
            return
        yield search.found
        at = max(search.found.end, at + (search.found.end == search.found.start))
