"""Regular expressions in Rust's syntax, which is that of the constraint engine, read into a tree."""

from __future__ import annotations

import re
import string
import unicodedata
from dataclasses import dataclass, replace

from cvllm_jax.errors import shown
from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.syntax_tree import ASCII, Characters, Choice, Node, Repeat, Sequence, part_of_class

__all__ = ["ANY", "one_of", "read_regex"]

MAX_NESTING = 30

_COUNT = re.compile(r"\{\s*(\d{1,6})\s*(?:(,)\s*(\d{1,6})?\s*)?\}")
_GROUP_NAME = re.compile(r"\?P?<[A-Za-z_][\w.\[\]]*>", re.ASCII)
_FLAGS = re.compile(r"\?([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)])")
_POSIX = re.compile(r"\[:(\^?)([a-z]+):\]")
_PROPERTY = re.compile(r"\{(\^?)([A-Za-z_ ]+)\}|([A-Z])")
_CONTROLS = {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}
_DIGITS = frozenset(string.digits)
_CLASSES = {
    "d": _DIGITS,
    "w": _DIGITS | frozenset(string.ascii_letters + "_"),
    "s": frozenset("\t\n\v\f\r "),
}
_POSIX_CLASSES = {
    "alnum": _DIGITS | frozenset(string.ascii_letters),
    "alpha": frozenset(string.ascii_letters),
    "ascii": ASCII,
    "blank": frozenset("\t "),
    "cntrl": frozenset(character for character in ASCII if unicodedata.category(character) == "Cc"),
    "digit": _DIGITS,
    "graph": frozenset(map(chr, range(0x21, 0x7F))),
    "lower": frozenset(string.ascii_lowercase),
    "print": frozenset(map(chr, range(0x20, 0x7F))),
    "punct": frozenset(string.punctuation),
    "space": _CLASSES["s"],
    "upper": frozenset(string.ascii_uppercase),
    "word": _CLASSES["w"],
    "xdigit": frozenset(string.hexdigits),
}
# Names of general categories and of some other properties, without what Unicode lets names differ in.
_CATEGORIES = {
    "letter": "L", "lowercaseletter": "Ll", "uppercaseletter": "Lu", "titlecaseletter": "Lt", "modifierletter": "Lm",
    "otherletter": "Lo", "mark": "M", "nonspacingmark": "Mn", "spacingmark": "Mc", "enclosingmark": "Me",
    "number": "N", "decimalnumber": "Nd", "letternumber": "Nl", "othernumber": "No", "punctuation": "P",
    "connectorpunctuation": "Pc", "dashpunctuation": "Pd", "openpunctuation": "Ps", "closepunctuation": "Pe",
    "initialpunctuation": "Pi", "finalpunctuation": "Pf", "otherpunctuation": "Po", "symbol": "S", "mathsymbol": "Sm",
    "currencysymbol": "Sc", "modifiersymbol": "Sk", "othersymbol": "So", "separator": "Z", "spaceseparator": "Zs",
    "lineseparator": "Zl", "paragraphseparator": "Zp", "other": "C", "control": "Cc", "format": "Cf",
    "unassigned": "Cn", "privateuse": "Co",
}  # fmt: skip
_PROPERTIES = {
    "any": ASCII,
    "ascii": ASCII,
    "alphabetic": _POSIX_CLASSES["alpha"],
    "lowercase": _POSIX_CLASSES["lower"],
    "uppercase": _POSIX_CLASSES["upper"],
    "whitespace": _CLASSES["s"],
    "latin": _POSIX_CLASSES["alpha"],
} | dict.fromkeys(
    ("greek", "cyrillic", "han", "hiragana", "katakana", "hangul", "arabic", "hebrew", "thai", "devanagari"),
    frozenset[str](),
)

ANY = Characters(r"\x{0}-\x{10ffff}", ASCII, True, all_others=True)
"""Any character."""


def read_regex(pattern: str, flags: str = "", *, anchors: bool = False) -> Node:
    """The pattern as a tree of characters, sequences, choices and repetitions.

    Arguments:
        flags: of "imsux", those that hold for all of it.
        anchors: ``^`` and ``$`` at the ends of the whole pattern or of its alternatives say nothing, as it matches
            whole texts anyway. Otherwise it has none.

    Raises:
        GrammarError: it is malformed, or has what is not supported.
    """
    reader = _Reader(pattern, _Flags().changed(flags, True), anchors)
    node = reader.choice()
    if reader.position < len(pattern):
        raise reader.refusal("an unmatched ')'")
    return node


def one_of(low: str, high: str) -> Characters:
    """A character between two others."""
    inside = frozenset(character for character in ASCII if low <= character <= high)
    return Characters(f"{part_of_class(low)}-{part_of_class(high)}", inside, not high.isascii())


@dataclass(frozen=True, slots=True)
class _Flags:
    ignore_case: bool = False
    dot_matches_newline: bool = False
    verbose: bool = False

    def changed(self, letters: str, to: bool) -> _Flags:
        """Raises KeyError for a flag that there is not."""
        names = {"i": "ignore_case", "s": "dot_matches_newline", "x": "verbose"}
        values = {name: getattr(self, name) for name in names.values()}
        for letter in letters:
            if letter == "m" or (letter == "u" and to):  # there are no lines' ends, and Unicode always
                continue
            values[names[letter]] = to
        return _Flags(**values)


class _Reader:
    def __init__(self, pattern: str, flags: _Flags, anchors: bool) -> None:
        self.pattern = pattern
        self.position = 0
        self._flags = flags
        self._anchors = anchors
        self._depth = 0

    def choice(self, *, group: bool = False) -> Node:
        """Everything up to a closing bracket or the end."""
        options = [self._branch(group)]
        while self._take("|"):
            options.append(self._branch(group))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _branch(self, group: bool) -> Node:
        parts: list[Node] = []
        anchors = self._anchors and not group
        begins = True
        self._skip()
        while self.position < len(self.pattern) and self._peek() not in "|)":
            start = self.position
            if self._take("^") or self._take("\\A"):
                if not (anchors and begins):
                    raise self.refusal("an anchor that is not at an end of the whole pattern", start)
            elif self._take("$") or self._take("\\z"):
                self._skip()
                if not anchors or self._peek() not in ("", "|"):
                    raise self.refusal("an anchor that is not at an end of the whole pattern", start)
            elif (part := self._term()) is not None:
                parts.append(self._repeated(part))
                begins = False
            self._skip()
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _term(self) -> Node | None:
        """The next thing that matches something; None for flags."""
        start = self.position
        character = self._next()
        if character == "(":
            return self._group(start)
        if character == "[":
            return self._class(start)
        if character == ".":
            if self._flags.dot_matches_newline:
                return ANY
            return Characters(r"[^\n]", ASCII - {"\n"}, True, all_others=True)
        if character in "*+?{":
            raise self.refusal("a repetition of nothing", start)
        return self._with_case(_set(self._escape(start) if character == "\\" else character))

    def _group(self, start: int) -> Node | None:
        outer = self._flags
        if name := _GROUP_NAME.match(self.pattern, self.position):
            self.position = name.end()
        elif flags := _FLAGS.match(self.pattern, self.position):
            try:
                self._flags = outer.changed(flags[1], True).changed(flags[2] or "", False)
            except KeyError as error:
                raise self.refusal(f"the flag {error.args[0]!r}", start) from None
            self.position = flags.end()
            if flags[3] == ")":  # for the rest of the group that this stands in, which restores them
                return None
        elif self._peek() == "?":
            raise self.refusal("lookaround", start)
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise self.refusal(f"more than {MAX_NESTING} nested groups", start)
        inside = self.choice(group=True)
        if not self._take(")"):
            raise self.refusal("an unmatched '('", start)
        self._depth -= 1
        self._flags = outer
        return inside

    def _repeated(self, part: Node) -> Node:
        """The part with the quantifiers that follow it."""
        while True:
            self._skip()
            if count := _COUNT.match(self.pattern, self.position):
                self.position = count.end()
                most = int(count[3]) if count[3] else None
                part = Repeat(part, int(count[1]), most if count[2] else int(count[1]))
            elif self._peek() in ("*", "+", "?"):
                quantifier = self._next()
                part = Repeat(part, int(quantifier == "+"), 1 if quantifier == "?" else None)
            else:
                return part
            self._take("?")  # lazy: which match is found first matters not to whether there is one

    def _class(self, start: int) -> Characters:
        """A class, whose bracket has been read."""
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise self.refusal(f"more than {MAX_NESTING} nested classes", start)
        negated = self._take("^")
        held = self._items(start)
        while operator := next((it for it in ("&&", "--", "~~") if self._take(it)), ""):
            right = self._items(start)
            source = f"[{held.source}]{operator}[{right.source}]"
            match operator:
                case "&&":
                    others, all_others = held.others and right.others, held.all_others and right.all_others
                    held = Characters(source, held.ascii & right.ascii, others, all_others)
                case "--":
                    others, all_others = held.others and not right.all_others, held.all_others and not right.others
                    held = Characters(source, held.ascii - right.ascii, others, all_others)
                case _:
                    others = not (held.all_others and right.all_others) and (held.others or right.others)
                    held = Characters(source, held.ascii ^ right.ascii, others)
        if not self._take("]"):
            raise self.refusal("an unmatched '['", start)
        self._depth -= 1
        held = self._with_case(held)
        return _negated(held) if negated else held

    def _items(self, start: int) -> Characters:
        """What stands in a class up to its end or an operator."""
        items: list[Characters] = []
        first = True
        while True:
            self._skip()
            if self.position >= len(self.pattern):
                raise self.refusal("an unmatched '['", start)
            if (self._peek() == "]" and not first) or self.pattern.startswith(("&&", "--", "~~"), self.position):
                return self._with_case(_union(items))
            first = False
            items.append(self._item())

    def _item(self) -> Characters:
        start = self.position
        if posix := _POSIX.match(self.pattern, start):
            if posix[2] not in _POSIX_CLASSES:
                raise self.refusal(f"the class {posix[0]}", start)
            self.position = posix.end()
            held = Characters(f"[:{posix[2]}:]", _POSIX_CLASSES[posix[2]], False)
            return _negated(held) if posix[1] else held
        if self._take("["):
            return self._class(start)
        low = self._character()
        if isinstance(low, Characters):
            return low
        self._skip()
        if not self.pattern.startswith("-", self.position) or self.pattern.startswith(("-]", "--"), self.position):
            return _set(low)
        self.position += 1
        self._skip()
        high = self._character()
        if isinstance(high, Characters):
            raise self.refusal("a range between classes", start)
        if low > high:
            raise self.refusal("a range whose ends are in the wrong order", start)
        return one_of(low, high)

    def _character(self) -> str | Characters:
        start = self.position
        character = self._next()
        return self._escape(start) if character == "\\" else character

    def _escape(self, start: int) -> str | Characters:
        """What follows a backslash: a character or a class."""
        letter = self._next()
        if letter.lower() in _CLASSES:
            held = Characters(f"\\{letter.lower()}", _CLASSES[letter.lower()], True)
            return _negated(held) if letter.isupper() else held
        if letter in "pP":
            return self._property(letter == "P", start)
        if letter in _CONTROLS:
            return _CONTROLS[letter]
        if letter in "xuU":
            digits = {"x": 2, "u": 4, "U": 8}[letter]
            code = re.compile(rf"\{{([0-9A-Fa-f]{{1,8}})\}}|([0-9A-Fa-f]{{{digits}}})").match(
                self.pattern, self.position
            )
            if code is None or 0xD800 <= (value := int(code[1] or code[2], 16)) < 0xE000 or value > 0x10FFFF:
                raise self.refusal("a malformed character code", start)
            self.position = code.end()
            return chr(value)
        if letter.isalnum() or not letter.isascii() or letter in "<>":
            raise self.refusal(f"the escape \\{letter}", start)
        return letter

    def _property(self, negated: bool, start: int) -> Characters:
        found = _PROPERTY.match(self.pattern, self.position)
        if found is None:
            raise self.refusal("a property class that is not supported", start)
        self.position = found.end()
        name = found[2] or found[3]
        plain = re.sub("[_ ]", "", name).lower()
        category = _CATEGORIES.get(plain, plain.capitalize())
        if plain in _PROPERTIES:
            inside = _PROPERTIES[plain]
        elif category in _CATEGORIES.values():
            inside = frozenset(it for it in ASCII if unicodedata.category(it).startswith(category))
        else:
            raise self.refusal(f"the property class {name!r}", start)
        held = Characters(rf"\p{{{name}}}", inside, plain != "ascii")
        return _negated(held) if negated != bool(found[1]) else held

    def _with_case(self, held: Characters) -> Characters:
        if not self._flags.ignore_case:
            return held
        both = {other for it in held.ascii for other in (it.lower(), it.upper())}
        return replace(held, ascii=frozenset(both), ignore_case=True)

    def _skip(self) -> None:
        """Read what has no meaning where patterns are verbose."""
        while self._flags.verbose and self.position < len(self.pattern):
            if self._peek() == "#":
                end = self.pattern.find("\n", self.position)
                self.position = len(self.pattern) if end < 0 else end
            elif not self._peek().isspace():
                return
            else:
                self.position += 1

    def _peek(self) -> str:
        return self.pattern[self.position : self.position + 1]

    def _next(self) -> str:
        character = self._peek()
        if not character:
            raise self.refusal("an unexpected end")
        self.position += 1
        return character

    def _take(self, text: str) -> bool:
        found = self.pattern.startswith(text, self.position)
        self.position += len(text) * found
        return found

    def refusal(self, what: str, position: int | None = None) -> GrammarError:
        at = self.position if position is None else position
        return GrammarError(f"the pattern {shown(self.pattern)} has {what} at character {at}, which is not supported")


def _set(item: str | Characters) -> Characters:
    if isinstance(item, Characters):
        return item
    return Characters(part_of_class(item), frozenset({item} if item.isascii() else ()), not item.isascii())


def _union(items: list[Characters]) -> Characters:
    sources = {item.source for item in items}
    if any(f"[^{source}]" in sources for source in sources):  # a class and its opposite
        return ANY
    return Characters(
        "".join(item.source for item in items),
        frozenset[str]().union(*(item.ascii for item in items)),
        any(item.others for item in items),
        any(item.all_others for item in items),
    )


def _negated(held: Characters) -> Characters:
    source, others = f"[^{held.source}]", not held.all_others
    return Characters(source, ASCII - held.ascii, others, not held.others, held.ignore_case)
