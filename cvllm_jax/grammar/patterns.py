"""Regular expressions as JSON Schema knows them, rewritten in the syntax of the constraint engine.

A pattern is written for ECMA 262, checked by whatever validator its author uses (Python's ``re`` more often than not)
and compiled here by an engine with Rust's syntax. The three differ: what ``\\W`` is, what ``[a--b]`` or ``[[]`` mean.
The rewritten pattern matches what **both** ECMA 262 and Python would match, so that either accepts what was generated;
a construct that they read differently, or that no automaton can follow, is refused with its position.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from cvllm_jax.errors import shown
from cvllm_jax.grammar.errors import GrammarError

__all__ = ["literal", "not_any_of", "rewrite_pattern"]

MAX_PATTERN_LENGTH = 20_000
MAX_EXPANDED_SIZE = 20_000
MAX_NESTING = 60

# What a class surely holds, in every reading, and what it may hold in some reading. A class that is negated holds
# what the other one's complement holds.
_SURE = {
    "d": "0-9",
    "w": "0-9A-Za-z_",
    "s": r"\s",
}
_POSSIBLE = {
    "d": r"\p{Nd}",
    "w": r"\p{Alphabetic}\p{M}\p{N}\p{Pc}",
    "s": r"\s\x{1c}-\x{1f}",
}
# ECMA and Python differ in U+0085, U+FEFF (of \s), U+2028 and U+2029 (of the dot) besides. There Python is followed:
# to leave them out too would make the automata several times as large, for characters that hardly ever come.
_DOT = r"[^\n\r]"
# In a JSON string the engine (1.9.1) takes a class of all control characters without a quote or backslash to have these
# too. Without one control character it reads the class as it is, so classes of strings go without NUL.
_NO_NUL = r"\x{0}"
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_COUNT = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_OPEN_COUNT = re.compile(r"\{,\d*\}")
_GROUP_NAME = re.compile(r"\?P?<[A-Za-z_]\w*>", re.ASCII)
_PROPERTY = re.compile(r"\{([A-Za-z_]+(?:=[A-Za-z_]+)?)\}")


def rewrite_pattern(pattern: str, *, whole: bool = False) -> str:
    """The pattern in Rust's syntax.

    Arguments:
        whole: the pattern has to match from beginning to end, as if it stood between ``^`` and ``$``.

    Raises:
        GrammarError: the pattern is malformed, too large, or uses what is not supported.
    """
    return _Rewriter(pattern, whole).rewrite()


def literal(text: str) -> str:
    """A pattern that matches this text alone."""
    return "".join(map(_character, map(ord, text)))


def not_any_of(texts: list[str]) -> str:
    """A pattern, anchored at both ends, for every text but these."""
    return f"^{_others(frozenset(texts))}$"


def _others(texts: frozenset[str]) -> str:
    """A group for every text that is none of ``texts``, by their first characters."""
    rests: dict[str, set[str]] = {}
    for text in texts - {""}:
        rests.setdefault(text[0], set()).add(text[1:])
    options = [] if "" in texts else [""]
    if not rests:
        return "(?s:.+)" if "" in texts else "(?s:.*)"
    first = "".join(sorted(literal(character) for character in rests))
    options.append(f"[^{first}{_NO_NUL}](?s:.*)")
    options += [literal(character) + _others(frozenset(rest)) for character, rest in sorted(rests.items())]
    return f"(?:{'|'.join(options)})"


def _character(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else rf"\x{{{code:x}}}"


@dataclass(frozen=True, slots=True)
class _Part:
    text: str
    size: int = 1
    """Of the automaton, roughly: characters once repetitions are written out."""
    anchored: bool = False
    """It holds an anchor, so it cannot be repeated."""
    ends: bool = False
    """It holds ``$``, so nothing can follow."""


class _Rewriter:
    def __init__(self, pattern: str, whole: bool) -> None:
        self.pattern = pattern
        self.whole = whole
        self.position = 0
        self.depth = 0

    def rewrite(self) -> str:
        if len(self.pattern) > MAX_PATTERN_LENGTH:
            raise GrammarError(f"a pattern may have {MAX_PATTERN_LENGTH} characters, not {len(self.pattern)}")
        result = self.alternatives(leading=True)
        if self.position < len(self.pattern):
            raise self.refusal("an unmatched ')'")
        return result.text

    def alternatives(self, leading: bool) -> _Part:
        """Everything up to a closing bracket or the end."""
        branches = [self.branch(leading)]
        while self.take("|"):
            branches.append(self.branch(leading))
        return _Part(
            "|".join(branch.text for branch in branches),
            sum(branch.size for branch in branches),
            any(branch.anchored for branch in branches),
            any(branch.ends for branch in branches),
        )

    def branch(self, leading: bool) -> _Part:
        parts: list[_Part] = []
        while self.position < len(self.pattern) and self.peek() not in "|)":
            start = self.position
            if self.take("$"):
                part = _Part("" if self.whole else "$", 0, anchored=True, ends=True)
            elif any(part.ends for part in parts):
                raise self.refusal("something after '$'", start)
            elif self.take("^"):
                if not leading:
                    raise self.refusal("'^' where something comes before it", start)
                part = _Part("" if self.whole else "^", 0, anchored=True)
            else:
                part = self.term(leading)
                leading = False
            parts.append(self.repeated(part, start))
            if sum(part.size for part in parts) > MAX_EXPANDED_SIZE:
                raise self.refusal(f"more than {MAX_EXPANDED_SIZE} parts once repetitions are written out", start)
        return _Part(
            "".join(part.text for part in parts),
            sum(part.size for part in parts) + 1,
            any(part.anchored for part in parts),
            any(part.ends for part in parts),
        )

    def term(self, leading: bool) -> _Part:
        start = self.position
        character = self.next()
        if character == "(":
            return self.group(leading, start)
        if character == "[":
            return _Part(self.bracket(start))
        if character == ".":
            return _Part(_DOT)
        if character == "\\":
            return _Part(self.escape(start))
        if character in "*+?" or (character == "{" and _COUNT.match(self.pattern, start)):
            raise self.refusal("a repetition of nothing", start)
        if _OPEN_COUNT.match(self.pattern, start):
            raise self.refusal("'{,n}', which is read in different ways", start)
        return _Part(self.code(ord(character), start))

    def group(self, leading: bool, start: int) -> _Part:
        if self.pattern.startswith("?:", self.position):
            self.position += 2
        elif name := _GROUP_NAME.match(self.pattern, self.position):
            self.position = name.end()
        elif self.pattern.startswith(("?=", "?!", "?<=", "?<!"), self.position):
            raise self.refusal("lookaround", start)
        elif self.pattern.startswith("?", self.position):
            raise self.refusal("a group with options", start)
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise self.refusal(f"more than {MAX_NESTING} nested groups", start)
        inside = self.alternatives(leading)
        if not self.take(")"):
            raise self.refusal("an unmatched '('", start)
        self.depth -= 1
        return replace(inside, text=f"(?:{inside.text})")

    def repeated(self, part: _Part, start: int) -> _Part:
        """The part with the quantifier that follows it, if one does."""
        quantifier, times = self.peek(), 1
        if match := _COUNT.match(self.pattern, self.position):
            quantifier, least, most = match[0], match[1], match[3] or match[1]
            if len(least) > 6 or len(most) > 6:
                raise self.refusal("a repetition of more than 999999")
            if int(least) > int(most):
                raise self.refusal("a repetition whose least is more than its most")
            times = int(most) + 1
        elif not quantifier or quantifier not in "*+?":
            return part
        if part.anchored:
            raise self.refusal("a repeated anchor", start)
        self.position += len(quantifier)
        self.take("?")  # lazy: which match is found first matters not to whether there is one
        if self.peek() in ("*", "+", "?") or _COUNT.match(self.pattern, self.position):
            raise self.refusal("a repetition of a repetition")
        return _Part(part.text + quantifier, part.size * times)

    def bracket(self, start: int) -> str:
        negated = self.take("^")
        items = []
        if self.peek() == "]":
            raise self.refusal("a class that begins with ']', which is read in different ways", start)
        while not self.take("]"):
            if self.position >= len(self.pattern):
                raise self.refusal("an unmatched '['", start)
            item = self.position
            low = self.class_item(negated)
            ranges = self.pattern.startswith("-", self.position) and not self.pattern.startswith("-]", self.position)
            if not ranges:
                items.append(low if isinstance(low, str) else _character(low))
                continue
            self.position += 1
            high = self.class_item(negated)
            if isinstance(low, str) or isinstance(high, str):
                raise self.refusal("a range between classes", item)
            if low > high:
                raise self.refusal("a range whose ends are in the wrong order", item)
            low = low if self.whole else max(low, min(high, 1))  # see _NO_NUL
            items.append(f"{_character(low)}-{_character(high)}")
        if negated and not self.whole:
            items.append(_NO_NUL)
        return f"[{'^' if negated else ''}{''.join(items)}]"

    def class_item(self, negated: bool) -> int | str:
        start = self.position
        character = self.next()
        if character != "\\":
            return self.checked(ord(character), start)
        if self.peek() == "b":
            self.position += 1
            return 8
        return self.escaped(start, negated)

    def escape(self, start: int) -> str:
        item = self.escaped(start, negated=False)
        return self.code(item, start) if isinstance(item, int) else f"[{item}]"

    def escaped(self, start: int, negated: bool) -> int | str:
        """What follows a backslash: a character's code, or what stands for a class inside brackets."""
        character = self.next()
        if character in "dws":
            return (_POSSIBLE if negated else _SURE)[character]
        if character in "DWS":
            return f"[^{(_SURE if negated else _POSSIBLE)[character.lower()]}]"
        if character in "pP":
            name = _PROPERTY.match(self.pattern, self.position)
            if name is None:
                raise self.refusal("a malformed property class", start)
            self.position = name.end()
            return rf"\{character}{{{name[1]}}}"
        if character in _CONTROLS:
            return _CONTROLS[character]
        if character == "0" and not self.peek().isdigit():
            return 0
        if character == "c" and re.match(r"[A-Za-z]", self.peek()):
            return ord(self.next()) % 32
        if character == "x":
            return self.digits(r"[0-9A-Fa-f]{2}", start)
        if character == "u":
            return self.digits(r"[0-9A-Fa-f]{4}|\{[0-9A-Fa-f]{1,6}\}", start)
        if character.isdigit() or character == "k":
            raise self.refusal("a reference to a group", start)
        if character in "bB":
            raise self.refusal("a word boundary", start)
        if character.isalpha() or not character.isascii():
            raise self.refusal(f"the escape \\{character}", start)
        return ord(character)

    def digits(self, expected: str, start: int) -> int:
        match = re.compile(expected).match(self.pattern, self.position)
        if match is None:
            raise self.refusal("a malformed character code", start)
        self.position = match.end()
        return self.checked(int(match[0].strip("{}"), 16), start)

    def code(self, code: int, start: int) -> str:
        return _character(self.checked(code, start))

    def checked(self, code: int, start: int) -> int:
        if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
            raise self.refusal(f"the code {code:x}, which is no character", start)
        return code

    def peek(self) -> str:
        return self.pattern[self.position : self.position + 1]

    def next(self) -> str:
        character = self.peek()
        if not character:
            raise self.refusal("an unexpected end")
        self.position += 1
        return character

    def take(self, character: str) -> bool:
        found = self.pattern.startswith(character, self.position)
        self.position += found
        return found

    def refusal(self, what: str, position: int | None = None) -> GrammarError:
        at = self.position if position is None else position
        return GrammarError(f"the pattern {shown(self.pattern)} has {what} at character {at}, which is not supported")
