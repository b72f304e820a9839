"""How a text stands where it is written: as itself, or with some characters as JSON escapes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby

from cvllm_jax.grammar import lark
from cvllm_jax.grammar.lark_syntax import LarkSource
from cvllm_jax.grammar.regex_syntax import ANY, one_of
from cvllm_jax.grammar.syntax_tree import (
    ASCII,
    And,
    Characters,
    Choice,
    EscapeRest,
    Node,
    Not,
    Pattern,
    Repeat,
    Sequence,
    Symbol,
    Text,
    part_of_class,
)

__all__ = ["PLAIN", "TextEncoding", "json_string", "times"]

# Codes of characters that are not ASCII, as pairs where they need more than four digits.
_CODES = (
    "u(?:00[89a-f][0-9a-f]|0[1-9a-f][0-9a-f]{2}|[1-9a-cef][0-9a-f]{3}|d[0-7][0-9a-f]{2}"
    r"|d[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})"
)
_SHORT = {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", '"': '"', "\\": "\\"}


class TextEncoding:
    """Writes each of ``escaped``, ASCII characters, as JSON escapes it and all others as they are.

    With any escapes, a character that may be any of those that are not ASCII may stand as an escape, too: some models
    write them so.
    """

    def __init__(self, escaped: Iterable[str] = ()) -> None:
        self._escaped = frozenset(escaped)
        if not self._escaped <= ASCII:
            raise ValueError("only ASCII characters can be escaped")
        self._without = "".join(map(part_of_class, sorted(self._escaped)))

    def terminal(self, node: Node) -> str:
        """An expression for what a terminal matches."""
        match node:
            case Text(text):
                return lark.quoted("".join(map(self._spelled, text)))
            case Pattern(body):
                pattern = self.pattern(body)
                return f"/{pattern}/" if pattern else '""'
            case Symbol(name):
                return name
            case Sequence(parts):
                return f"({' '.join(map(self.terminal, parts))})" if parts else '""'
            case Choice(options):
                return f"({' | '.join(map(self.terminal, options))})"
            case Repeat(part, least, most):
                return f"({self.terminal(part)}){times(least, most)}"
            case And(parts):
                return f"({' & '.join(map(self.terminal, parts))})"
            case Not(part, begun):  # of what is written so, and whole characters
                first = EscapeRest(ANY) if begun else Sequence(())
                texts = self.pattern(Sequence((first, Repeat(ANY, 0, None))))
                return f"(~({self.terminal(part)}) & /{texts}/)"
            case Characters() | EscapeRest():
                return f"/{self.pattern(node)}/"

    def pattern(self, node: Node) -> str:
        """A regular expression in Rust's syntax for what one matches."""
        match node:
            case Characters():
                return self._characters(node)
            case EscapeRest(held):
                return self._escapes(held)
            case Sequence(parts):
                return "".join(
                    f"(?:{self.pattern(part)})" if isinstance(part, Choice) else self.pattern(part) for part in parts
                )
            case Choice(options):
                return "|".join(map(self.pattern, options))
            case Repeat(part, least, most):
                return f"(?:{self.pattern(part)}){times(least, most)}"
        raise TypeError(f"a {type(node).__name__} is no part of a pattern")

    def rest(self, node: Node, source: LarkSource) -> Node | None:
        """What may come after a backslash that an escape of a terminal's first character begins with; None: there is no
        such text."""
        match node:
            case Characters():
                return EscapeRest(node) if self._has_escapes(node) else None
            case Text(text):
                if not text or text[0] not in self._escaped:
                    return None
                return Sequence((EscapeRest(one_of(text[0], text[0])), Text(text[1:])))
            case Symbol():
                return self.rest(source.terminal(node), source)
            case Pattern(body):
                rest = self.rest(body, source)
                return rest and Pattern(rest)
            case Sequence(parts):
                options: list[Node] = []
                for index, part in enumerate(parts):
                    if (rest := self.rest(part, source)) is not None:
                        options.append(Sequence((rest, *parts[index + 1 :])))
                    if not source.may_be_empty(part):
                        break
                return Choice(tuple(options)) if options else None
            case Choice(parts):
                rests = [rest for part in parts if (rest := self.rest(part, source)) is not None]
                return Choice(tuple(rests)) if rests else None
            case Repeat(part, least, most):
                if most == 0 or (rest := self.rest(part, source)) is None:
                    return None
                least = 0 if source.may_be_empty(part) else max(least - 1, 0)
                return Sequence((rest, Repeat(part, least, None if most is None else most - 1)))
            case And(parts):
                all_rests = [rest for part in parts if (rest := self.rest(part, source)) is not None]
                return And(tuple(all_rests)) if len(all_rests) == len(parts) else None
            case Not(part):
                if (rest := self.rest(part, source)) is None:
                    return Sequence((EscapeRest(ANY), Pattern(Repeat(ANY, 0, None))))
                return Not(rest, begun=True)
        return None

    def _characters(self, held: Characters) -> str:
        escaped = held.ascii & self._escaped
        inside = f"[{held.source}&&[^{self._without}]]" if escaped else f"[{held.source}]"
        plain = f"(?i:{inside})" if held.ignore_case else inside
        if not self._has_escapes(held):
            return plain
        escapes = rf"\\(?:{self._escapes(held)})"
        return f"(?:{plain}|{escapes})" if held.others or held.ascii - escaped else escapes

    def _has_escapes(self, held: Characters) -> bool:
        return bool(self._escaped) and (held.all_others or not self._escaped.isdisjoint(held.ascii))

    def _escapes(self, held: Characters) -> str:
        """A pattern of escapes without their backslash."""
        escaped = sorted(held.ascii & self._escaped)
        short = [part_of_class(_SHORT[it]) for it in escaped if it in _SHORT]
        options = [f"[{''.join(short)}]"] if short else []
        codes = [f"{ord(it):02x}" for it in escaped if it not in _SHORT]
        for first, same in groupby(codes, key=lambda code: code[0]):
            options.append(rf"u00{first}[{''.join(code[1] for code in same)}]")
        if held.all_others:
            options.append(_CODES)
        return f"(?:{'|'.join(options)})"

    def _spelled(self, character: str) -> str:
        if character not in self._escaped:
            return character
        return f"\\{_SHORT[character]}" if character in _SHORT else f"\\u{ord(character):04x}"


PLAIN = TextEncoding()
"""A text as it is."""


def json_string(more: Iterable[str] = ()) -> TextEncoding:
    """What stands between the quotes of a JSON string, in which ``more`` are escaped though they need not be."""
    needed = {character for character in ASCII if json.dumps(character, ensure_ascii=False) != f'"{character}"'}
    return TextEncoding(needed.union(more))


def times(least: int, most: int | None) -> str:
    """What stands after a part that is repeated."""
    if most is None and least < 2:
        return "*+"[least]
    return "?" if (least, most) == (0, 1) else f"{{{least},{'' if most is None else most}}}"
