"""Grammars in the Lark dialect of the constraint engine, read into a tree.

What an engine reads but no rewriting can follow (control tokens, JSON schemas, other grammars, parameters, limits in
tokens) is refused; so is what the engine refuses too, in its own words where it was asked before.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from cvllm_jax.errors import shown
from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.regex_syntax import one_of, read_regex
from cvllm_jax.grammar.syntax_tree import And, Choice, Node, Not, Pattern, Repeat, Sequence, Symbol, Text

__all__ = ["LarkRule", "LarkSource", "read_lark"]

MAX_NESTING = 30

# Of tokens that begin at the same place, the longest is meant.
_TOKENS = {
    "skip": re.compile(r"(?:#|//)[^\n]*|[ \t]+"),
    "newline": re.compile(r"(?:\r?\n)+[ \t]*"),
    "string": re.compile(
        r'"(?:\\(?:["\\/bfnrt]|u[a-fA-F0-9]{4}|x[a-fA-F0-9]{2})|[^"\\\x00-\x1F\x7F])*"i?'
    ),
    "regex": re.compile(r"/(?:\\.|[^/\\])+/[imslux]*"),
    "number": re.compile(r"[0-9]+"),
    "rule": re.compile(r"!?[_?]?[a-z][_a-z0-9-]*"),
    "terminal": re.compile(r"_?[A-Z][_A-Z0-9-]*"),
    "unsupported": re.compile(r"<[^<>\s]+>|@[a-zA-Z0-9_-]+|%(?!ignore|import)[a-z]+|::"),
    "sign": re.compile(r"->|\.\.|%ignore|%import|[:,.(){}\[\]~|&=+*?]"),
}
_MEANING = {"<": "a control token", "@": "a reference to another grammar", "%": "a directive", ":": "a parameter"}
# What `%import common.NAME` brings, as patterns.
_FLOAT = r"(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+"
_COMMON = {
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[0-9a-fA-F]",
    "INT": "[0-9]+",
    "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"[0-9]+\.[0-9]*|\.[0-9]+",
    "_EXP": "[eE][+-]?[0-9]+",
    "FLOAT": _FLOAT,
    "SIGNED_FLOAT": f"[+-]?(?:{_FLOAT})",
    "NUMBER": f"[0-9]+|{_FLOAT}",
    "SIGNED_NUMBER": f"[+-]?(?:[0-9]+|{_FLOAT})",
    "ESCAPED_STRING": r'"(?:[^"\\]|\\.)*"',
    "LCASE_LETTER": "[a-z]",
    "UCASE_LETTER": "[A-Z]",
    "LETTER": "[A-Za-z]",
    "WORD": "[A-Za-z]+",
    "CNAME": "[A-Za-z_][A-Za-z0-9_]*",
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"//[^\n]*",
    "C_COMMENT": r"/\*[^*]*\*+(?:[^/*][^*]*\*+)*/",
    "SQL_COMMENT": r"--[^\n]*",
}


@dataclass(frozen=True, slots=True)
class LarkRule:
    body: Node
    lazy: bool = False
    """It is one terminal, which ends as early as it can."""


@dataclass(slots=True)
class LarkSource:
    """A grammar: what its names stand for."""

    rules: dict[str, LarkRule] = field(default_factory=dict)
    terminals: dict[str, Node] = field(default_factory=dict)
    ignored: list[Node] = field(default_factory=list)
    """Terminals that may stand between any others."""

    def terminal(self, node: Node) -> Node:
        """What a terminal's name stands for; anything else is itself."""
        while isinstance(node, Symbol):
            if node.name not in self.terminals:
                raise GrammarError(f"the grammar has no terminal {shown(node.name)}")
            node = self.terminals[node.name]
        return node

    def may_be_empty(self, terminal: Node) -> bool:
        """Whether a terminal, or a part of one, may match no text at all."""
        match self.terminal(terminal):
            case Text(text):
                return not text
            case Pattern(part):
                return self.may_be_empty(part)
            case Sequence(parts) | And(parts):
                return all(map(self.may_be_empty, parts))
            case Choice(options):
                return any(map(self.may_be_empty, options))
            case Repeat(part, least, _):
                return least == 0 or self.may_be_empty(part)
            case Not(part):
                return not self.may_be_empty(part)
        return False


def read_lark(text: str) -> LarkSource:
    """Read a grammar. Raises GrammarError for what is malformed or not supported."""
    return _Reader(text).read()


def _tokens(text: str) -> list[tuple[str, str]]:
    """Kinds and texts of tokens."""
    found, position = [], 0
    while position < len(text):
        matches = [(kind, match) for kind, token in _TOKENS.items() if (match := token.match(text, position))]
        if not matches:
            raise GrammarError(f"the grammar has {shown(text[position : position + 20])} where no token begins")
        kind, match = max(matches, key=lambda it: it[1].end())
        if kind == "unsupported":
            raise GrammarError(f"the grammar has {_MEANING[match[0][0]]}, {shown(match[0])}, which is not supported")
        if kind != "skip":
            found.append((kind, match[0]))
        position = match.end()
    return [*found, ("newline", "\n")]


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._position = 0
        self._depth = 0
        self._source = LarkSource()

    def read(self) -> LarkSource:
        while self._position < len(self._tokens):
            kind, text = self._tokens[self._position]
            self._position += 1
            if kind == "newline":
                continue
            match kind, text:
                case "rule", _:
                    self._rule(text.lstrip("!?"))
                case "terminal", _:
                    self._expect(":")
                    self._add(self._source.terminals, text, self._choice())
                case _, "%ignore":
                    self._source.ignored.append(self._choice())
                case _, "%import":
                    self._import()
                case _:
                    raise self._unexpected(-1)
            if self._kind() != "newline":
                raise self._unexpected()
        self._check_names()
        return self._source

    def _rule(self, name: str) -> None:
        lazy, suffix = False, Sequence(())
        if self._take("["):
            while not self._take("]"):
                attribute = self._of("rule")
                match attribute:
                    case "lazy":
                        lazy = True
                    case "capture":
                        if self._take("="):
                            self._of("string")
                    case "suffix" if self._take("="):
                        lazy, suffix = True, Sequence((self._value(),))
                    case _:
                        raise GrammarError(
                            f"the grammar has the attribute {shown(attribute)}, which is not supported"
                        )
                self._take(",")
        self._expect(":")
        body = self._choice()
        self._add(self._source.rules, name, LarkRule(Sequence((body, suffix)) if suffix.parts else body, lazy))

    def _import(self) -> None:
        if self._of("rule") != "common":
            raise GrammarError("the grammar imports from elsewhere than 'common', which is not supported")
        self._take(".")
        if self._take("("):
            names = [self._of("terminal")]
            while self._take(","):
                names.append(self._of("terminal"))
            self._expect(")")
            for name in names:
                self._add(self._source.terminals, name, _common(name))
            return
        name = alias = self._of("terminal")
        if self._take("->"):
            alias = self._of("terminal")
        self._add(self._source.terminals, alias, _common(name))

    def _choice(self) -> Node:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise GrammarError(f"the grammar has more than {MAX_NESTING} nested groups")
        options = [self._option()]
        while self._take_bar():
            options.append(self._option())
        self._depth -= 1
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _option(self) -> Node:
        parts = [self._sequence()]
        while self._take("&"):
            parts.append(self._sequence())
        if self._take("->"):
            self._of("rule")
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._kind() != "newline" and self._tokens[self._position][1] not in ("|", "->", "}", ")", "]", "&"):
            parts.append(self._repeated())
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _repeated(self) -> Node:
        part = self._atom()
        for sign, least, most in (("*", 0, None), ("+", 1, None), ("?", 0, 1)):
            if self._take(sign):
                return Repeat(part, least, most)
        if self._text() == "~" and self._tokens[self._position + 1][0] == "number":
            self._position += 1
            fewest = int(self._of("number"))
            return Repeat(part, fewest, int(self._of("number")) if self._take("..") else fewest)
        if self._take("{"):
            fewest = 0 if self._text() == "," else int(self._of("number"))
            most = fewest
            if self._take(","):
                most = None if self._text() == "}" else int(self._of("number"))
            self._expect("}")
            return Repeat(part, fewest, most)
        return part

    def _atom(self) -> Node:
        if self._take("~"):
            return Not(self._atom())
        if self._take("("):
            inside = self._choice()
            self._expect(")")
            return inside
        if self._take("["):
            inside = self._choice()
            self._expect("]")
            return Repeat(inside, 0, 1)
        return self._value()

    def _value(self) -> Node:
        kind, text = self._tokens[self._position]
        self._position += 1
        match kind:
            case "string":
                if self._take(".."):
                    low, high = _literal(text), _literal(self._of("string"))
                    if len(low) != 1 or len(high) != 1 or low > high:
                        raise GrammarError(f"the grammar has no range from {shown(low)} to {shown(high)}")
                    return Pattern(one_of(low, high))
                if text.endswith("i"):
                    quoted = "".join(rf"\x{{{ord(character):x}}}" for character in _literal(text[:-1]))
                    return Pattern(read_regex(quoted, "i"))
                return Text(_literal(text))
            case "regex":
                body, _, flags = text[1:].rpartition("/")
                if "l" in flags:
                    raise GrammarError("the grammar has a pattern with the flag 'l', which is not supported")
                return Pattern(read_regex(body, flags))
            case "rule" | "terminal":
                return Symbol(text)
        raise self._unexpected(-1)

    def _add[T](self, names: dict[str, T], name: str, meaning: T) -> None:
        if name in names:
            raise GrammarError(f"the grammar has two meanings of {shown(name)}")
        names[name] = meaning

    def _check_names(self) -> None:
        if "start" not in self._source.rules:
            raise GrammarError("the grammar has no rule 'start'")

    def _kind(self) -> str:
        return self._tokens[self._position][0]

    def _text(self) -> str:
        """The next token, if it is a sign."""
        kind, text = self._tokens[self._position]
        return text if kind == "sign" else ""

    def _take(self, sign: str) -> bool:
        found = self._text() == sign
        self._position += found
        return found

    def _take_bar(self) -> bool:
        if self._kind() == "newline" and self._tokens[self._position + 1 :][:1] == [("sign", "|")]:
            self._position += 1
        return self._take("|")

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise self._unexpected()

    def _of(self, kind: str) -> str:
        if self._kind() != kind:
            raise self._unexpected()
        self._position += 1
        return self._tokens[self._position - 1][1]

    def _unexpected(self, offset: int = 0) -> GrammarError:
        return GrammarError(f"the grammar has {shown(self._tokens[self._position + offset][1])} in a wrong place")


def _literal(quoted: str) -> str:
    text: str = json.loads(re.sub(r"(\\[^x])|\\x", lambda match: match[1] or r"\u00", quoted))
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise GrammarError(f"the grammar has {shown(quoted)}, which is no text")
    return text


def _common(name: str) -> Node:
    if name not in _COMMON:
        raise GrammarError(f"the grammar imports {shown(name)}, which 'common' does not have")
    return Pattern(read_regex(_COMMON[name]))
