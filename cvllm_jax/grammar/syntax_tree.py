"""What grammars and patterns are made of, for those that are rewritten."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ASCII",
    "And",
    "Characters",
    "Choice",
    "EscapeRest",
    "Node",
    "Not",
    "Pattern",
    "Repeat",
    "Sequence",
    "Symbol",
    "Text",
    "part_of_class",
]

ASCII = frozenset(map(chr, range(128)))


@dataclass(frozen=True, slots=True)
class Characters:
    """One character of a set."""

    source: str
    """The set as a class in Rust's syntax has it between its brackets."""
    ascii: frozenset[str]
    """Those of its characters that are ASCII."""
    others: bool
    """It may have others."""
    all_others: bool = False
    """It has all others."""
    ignore_case: bool = False

    def has(self, character: str) -> bool:
        """Whether it holds a character; of those that are not ASCII, whether it may."""
        return character in self.ascii if character.isascii() else self.others


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Text:
    """A literal of a grammar."""

    text: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression of a grammar."""

    body: Node


@dataclass(frozen=True, slots=True)
class Symbol:
    """A rule's name, or a terminal's."""

    name: str

    @property
    def is_terminal(self) -> bool:
        return self.name.lstrip("_")[0].isupper()


@dataclass(frozen=True, slots=True)
class And:
    """What all of these terminals match."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """What this terminal does not match."""

    part: Node
    begun: bool = False
    """The texts, and those of the terminal, go without a backslash that an escape of their first character begins
    with."""


@dataclass(frozen=True, slots=True)
class EscapeRest:
    """Escapes of some characters without their backslash."""

    of: Characters


type Node = Characters | Sequence | Choice | Repeat | Text | Pattern | Symbol | And | Not | EscapeRest


def part_of_class(character: str) -> str:
    """A character as a class in Rust's syntax has it."""
    return character if character.isascii() and character.isalnum() else rf"\x{{{ord(character):x}}}"
