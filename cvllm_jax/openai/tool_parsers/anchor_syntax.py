"""Regular expressions as programs for :mod:`cvllm_jax.openai.tool_parsers.anchors`.

Patterns come with checkpoints, so they are not trusted: they are compiled to a machine that takes linear time on any
text, which Python's ``re`` does not. It knows literals, classes, groups, named groups, alternatives, greedy and lazy
``* + ? {m,n}``, and ``^ $ \\A \\Z`` as the ends of the text; ``.`` matches newlines too. Anything else is refused.

Source: Russ Cox, "Regular Expression Matching: the Virtual Machine Approach", 2009.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cvllm_jax.errors import ModelLoadError

__all__ = ["Begin", "Char", "End", "Instruction", "Match", "Program", "Save", "Split", "compile_pattern"]

_MAX_INSTRUCTIONS: Final = 2_000
_MAX_REPEAT: Final = 100
_REPEAT = re.compile(r"([*+?]|\{(?=\d|,\d)(\d*)(,?)(\d*)\})(\??)")
_GROUP = re.compile(r"\((?:\?:|\?P<([A-Za-z_]\w*)>|(?!\?))")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:[sSwWdDntrfv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^\w])")


@dataclass(frozen=True, slots=True)
class Char:
    """Reads one character that ``accepts`` matches; ``source`` is its pattern."""

    accepts: re.Pattern[str]
    source: str


@dataclass(frozen=True, slots=True)
class Split:
    """Goes on at both places, ``first`` preferred. Places are relative to this instruction."""

    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Save:
    """Remembers the place in the text: the beginning or the end of the group ``name``."""

    name: str
    is_end: bool


@dataclass(frozen=True, slots=True)
class Begin:
    """Passes at the beginning of the text only."""


@dataclass(frozen=True, slots=True)
class End:
    """Passes at the end of the text only."""


@dataclass(frozen=True, slots=True)
class Match:
    """The pattern has matched."""


type Instruction = Char | Split | Save | Begin | End | Match
type Program = tuple[Instruction, ...]


def compile_pattern(source: str) -> Program:
    """The program of a pattern. Raises ModelLoadError for one that is malformed, too large, or not known here."""
    parser = _Parser(source)
    program = (*parser.alternatives(0), Match())
    if parser.at < len(source):
        raise parser.refused("has a bracket too many")
    return program


class _Parser:
    """Recursive descent; groups nest as deep as ``_MAX_NESTING`` at most."""

    _MAX_NESTING: Final = 20

    def __init__(self, source: str) -> None:
        self._source = source
        self.at = 0

    def refused(self, reason: str) -> ModelLoadError:
        return ModelLoadError(f"the pattern {self._source!r} of the response_template {reason}")

    def alternatives(self, depth: int) -> list[Instruction]:
        branches = [self._sequence(depth)]
        while self.at < len(self._source) and self._source[self.at] == "|":
            self.at += 1
            branches.append(self._sequence(depth))
        program = branches.pop()
        for branch in reversed(branches):  # each goes on behind the last
            program = [Split(1, len(branch) + 2), *branch, _jump(len(program) + 1), *program]
            if len(program) > _MAX_INSTRUCTIONS:
                raise self.refused(f"is larger than {_MAX_INSTRUCTIONS} steps")
        return program

    def _sequence(self, depth: int) -> list[Instruction]:
        program: list[Instruction] = []
        while self.at < len(self._source) and self._source[self.at] not in "|)":
            program += self._repeated(self._atom(depth))
            if len(program) > _MAX_INSTRUCTIONS:
                raise self.refused(f"is larger than {_MAX_INSTRUCTIONS} steps")
        return program

    def _atom(self, depth: int) -> list[Instruction]:
        source, at = self._source, self.at
        if source[at] == "(":
            return self._group(depth)
        if source.startswith((r"\A", "^"), at) or source.startswith((r"\Z", "$"), at):
            self.at += 2 if source[at] == "\\" else 1
            return [Begin() if source.startswith((r"\A", "^"), at) else End()]
        if source[at] in "*+?":
            raise self.refused("repeats nothing")
        shape = {"[": _CLASS, "\\": _ESCAPE}.get(source[at])
        found = shape.match(source, at) if shape is not None else None
        if shape is not None and found is None:
            raise self.refused(f"has at {source[at : at + 3]!r} what is not supported here")
        text = found[0] if found is not None else source[at]
        self.at += len(text)
        pattern = text if text[0] in "[\\." else re.escape(text)
        try:
            return [Char(re.compile(pattern, re.DOTALL), pattern)]
        except re.error as error:
            raise self.refused(f"is malformed: {error}") from None

    def _group(self, depth: int) -> list[Instruction]:
        found = _GROUP.match(self._source, self.at)
        if found is None:
            raise self.refused(f"has a group {self._source[self.at : self.at + 4]!r}, which is not supported here")
        if depth == self._MAX_NESTING:
            raise self.refused(f"nests groups deeper than {self._MAX_NESTING}")
        self.at = found.end()
        program = self.alternatives(depth + 1)
        if self.at == len(self._source):
            raise self.refused("has a group that is not closed")
        self.at += 1
        name = found[1]
        return [Save(name, False), *program, Save(name, True)] if name else program

    def _repeated(self, atom: list[Instruction]) -> list[Instruction]:
        found = _REPEAT.match(self._source, self.at)
        if found is None:
            return atom
        self.at = found.end()
        if self._source[self.at : self.at + 1] in ("*", "+"):
            raise self.refused("has a possessive or double repetition, which is not supported here")
        lazy = bool(found[5])
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(found[1], (int(found[2] or 0), _high(found)))
        if max(low, high or 0) > _MAX_REPEAT or (high is not None and high < low):
            raise self.refused(f"repeats {found[1]}; the limit is {_MAX_REPEAT}")
        if len(atom) * max(low, high or 0) > _MAX_INSTRUCTIONS:
            raise self.refused(f"is larger than {_MAX_INSTRUCTIONS} steps")
        program = atom * low
        if high is None:
            back = len(atom) + 1
            return [*program, _split(1, back + 1, lazy), *atom, _jump(-back)]
        for remaining in range(high - low, 0, -1):
            program += [_split(1, remaining * (len(atom) + 1), lazy), *atom]
        return program


def _high(found: re.Match[str]) -> int | None:
    if found[4]:
        return int(found[4])
    return None if found[3] else int(found[2] or 0)


def _split(inside: int, outside: int, lazy: bool) -> Split:
    return Split(outside, inside) if lazy else Split(inside, outside)


def _jump(distance: int) -> Split:
    return Split(distance, distance)
