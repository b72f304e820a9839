"""Grammars whose texts stand as they are in front of a text that closes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

from cvllm_jax.grammar import lark
from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.forbidden_texts import ForbiddenTexts
from cvllm_jax.grammar.lark_syntax import LarkRule, LarkSource
from cvllm_jax.grammar.patterns import literal
from cvllm_jax.grammar.regex_syntax import read_regex
from cvllm_jax.grammar.rule_walk import Steps
from cvllm_jax.grammar.syntax_tree import And, Characters, Choice, Node, Not, Pattern, Repeat, Sequence, Symbol, Text

__all__ = ["enclosed"]

MAX_PARTS = 20_000

_NO_SPACE_AT_ENDS = Pattern(read_regex(r"(?:[^\s\x1c-\x1f](?:(?s:.*)[^\s\x1c-\x1f])?)?"))


def enclosed(
    source: LarkSource, close: str, forbidden: Iterable[str], *, strips: bool = False
) -> tuple[LarkSource, str]:
    """A grammar for the texts in front of ``close``, and an expression for ``close`` unless the grammar took it in.

    Arguments:
        forbidden: texts that none of the grammar's may have in it.
        strips: whitespace at the ends of a text is no part of it.

    Raises:
        GrammarError: it cannot be kept from texts that would not be read as they are.
    """
    if strips:
        source = _stripped(source)
    return _Rewriter(source, close, tuple(forbidden)).rewritten()


def _stripped(source: LarkSource) -> LarkSource:
    rule = source.rules["start"]
    if isinstance(rule.body, Sequence | Choice | Repeat) or rule.lazy or source.ignored:
        raise GrammarError(
            "a grammar of several terminals is not supported in this model's format of calls, which takes whitespace "
            "away from the ends of a text"
        )
    return LarkSource({"start": LarkRule(And((rule.body, _NO_SPACE_AT_ENDS)))}, source.terminals)


class _Rewriter:
    """Terminals go without the forbidden texts. A terminal goes on as long as it can, so where one that may come last
    could go on with what closes the text, all that may come last end with the closing text."""

    def __init__(self, source: LarkSource, close: str, forbidden: tuple[str, ...]) -> None:
        self._source = source
        self._close = close
        self._texts = ForbiddenTexts(source, forbidden)
        self._texts.check(close)
        held = f"(?s:.*)(?:{'|'.join(map(literal, forbidden))})(?s:.*)"
        self._without = Not(Pattern(read_regex(held)))
        taken = {*source.rules, *source.terminals}
        self._fresh = (name for name in map("part-{}".format, count()) if {name, name.upper()}.isdisjoint(taken))
        self._start = next(self._fresh)
        self._terminals: dict[str, Node] = dict(source.terminals)
        self._named: dict[Node, Symbol] = {}
        self._rules: dict[str, LarkRule] = {}
        self._closed: dict[str, str] = {}
        """Rules that end with the closing text, by those that do not."""
        self._empty = self._rules_of_nothing()
        self._steps = Steps(MAX_PARTS)

    def rewritten(self) -> tuple[LarkSource, str]:
        for name, rule in self._source.rules.items():
            body = self._terminal(rule.body) if rule.lazy else self._rule(rule.body)
            self._rules[self._name(name)] = LarkRule(body, rule.lazy)
        start = Symbol("start")
        takes = self._close and any(self._goes_on(it) for it in (*self._last(start, set()), *self._source.ignored))
        if not takes:
            self._rules["start"] = LarkRule(Symbol(self._start))
            return LarkSource(self._rules, self._terminals, self._source.ignored), lark.quoted(self._close)
        if self._source.ignored:
            raise GrammarError(
                "'%ignore' is not supported in this model's format of calls, where what is ignored could not be told "
                "from what ends the text"
            )
        options: list[Node] = [Text(self._close)] if self._may_be_nothing(start) else []
        if (ending := self._ending(start)) is not None:
            options.append(ending)
        self._rules["start"] = LarkRule(Choice(tuple(options)))
        return LarkSource(self._rules, self._terminals), ""

    def _name(self, rule: str) -> str:
        return self._start if rule == "start" else rule

    # parts of rules

    def _rule(self, node: Node) -> Node:
        """A part of a rule without forbidden texts."""
        self._steps.count()
        match node:
            case Symbol(name) if not node.is_terminal:
                return Symbol(self._name(name))
            case Sequence(parts):
                return Sequence(tuple(map(self._rule, parts)))
            case Choice(options):
                return Choice(tuple(map(self._rule, options)))
            case Repeat(part, least, most):
                return Repeat(self._rule(part), least, most)
        return self._terminal(node)

    def _terminal(self, node: Node) -> Node:
        return self._new_terminal(And((node, self._without))) if self._texts.within(node) else node

    def _new_terminal(self, node: Node) -> Symbol:
        if node not in self._named:
            self._named[node] = Symbol(next(self._fresh).upper())
            self._terminals[self._named[node].name] = node
        return self._named[node]

    def _ending(self, node: Node) -> Node | None:
        """What is not empty of a part of a rule, and what closes the text; None if all of it is empty."""
        self._steps.count()
        match node:
            case Symbol(name) if not node.is_terminal:
                if name not in self._closed:
                    self._closed[name] = closed = next(self._fresh)
                    rule = self._source.rules[name]
                    body: Node | None = Sequence((Symbol(self._name(name)), Text(self._close)))
                    body = body if rule.lazy else self._ending(rule.body)
                    self._rules[closed] = LarkRule(body if body is not None else Symbol(closed))
                return Symbol(self._closed[name])
            case Sequence(parts):
                options: list[Node] = []
                for index in reversed(range(len(parts))):
                    if (end := self._ending(parts[index])) is not None:
                        options.append(Sequence((*map(self._rule, parts[:index]), end)))
                    if not self._may_be_nothing(parts[index]):
                        break
                return Choice(tuple(options)) if options else None
            case Choice(parts):
                ends = [end for part in parts if (end := self._ending(part)) is not None]
                return Choice(tuple(ends)) if ends else None
            case Repeat(part, least, most):
                end = self._ending(part)
                if end is None or most == 1:
                    return end
                before = 0 if self._may_be_nothing(part) else max(least - 1, 0)
                return Sequence((Repeat(self._rule(part), before, None if most is None else most - 1), end))
            case Text(""):
                return None
        if self._goes_on(node):
            return self._new_terminal(Sequence((self._terminal(node), Text(self._close))))
        return Sequence((self._terminal(node), Text(self._close)))

    def _last(self, node: Node, seen: set[str]) -> Iterator[Node]:
        """The terminals that may come last."""
        match node:
            case Symbol(name) if not node.is_terminal:
                if name not in seen and not self._source.rules[name].lazy:
                    seen.add(name)
                    yield from self._last(self._source.rules[name].body, seen)
            case Sequence(parts):
                for part in reversed(parts):
                    yield from self._last(part, seen)
                    if not self._may_be_nothing(part):
                        return
            case Choice(options):
                for option in options:
                    yield from self._last(option, seen)
            case Repeat(part, _, _):
                yield from self._last(part, seen)
            case _:
                yield node

    # what terminals match

    def _goes_on(self, terminal: Node) -> bool:
        """Whether a terminal may go on with the first character of what closes the text."""
        return self._has(terminal, self._close[0]) and not self._is_fixed(terminal)

    def _is_fixed(self, terminal: Node) -> bool:
        """Whether all texts of a terminal have the same length."""
        match self._source.terminal(terminal):
            case Pattern(part):
                return self._is_fixed(part)
            case Sequence(parts):
                return all(map(self._is_fixed, parts))
            case Repeat(part, least, most):
                return least == most and self._is_fixed(part)
            case Text() | Characters():
                return True
        return False

    def _has(self, terminal: Node, character: str) -> bool:
        match self._source.terminal(terminal):
            case Characters() as held:
                return held.has(character)
            case Text(text):
                return character in text
            case Pattern(part) | Repeat(part, _, _):
                return self._has(part, character)
            case Sequence(parts) | Choice(parts):
                return any(self._has(part, character) for part in parts)
            case And(parts):
                return all(self._has(part, character) for part in parts)
        return True

    # what may be empty

    def _rules_of_nothing(self) -> set[str]:
        self._empty = set()
        while found := {
            name
            for name, rule in self._source.rules.items()
            if name not in self._empty and self._may_be_nothing(rule.body)
        }:
            self._empty |= found
        return self._empty

    def _may_be_nothing(self, node: Node) -> bool:
        match node:
            case Symbol(name) if not node.is_terminal:
                return name in self._empty
            case Sequence(parts):
                return all(map(self._may_be_nothing, parts))
            case Choice(options):
                return any(map(self._may_be_nothing, options))
            case Repeat(part, least, _):
                return least == 0 or self._may_be_nothing(part)
        return self._source.may_be_empty(node)

