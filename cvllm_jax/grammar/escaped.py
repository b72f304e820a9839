"""Grammars whose texts stand in a JSON string.

The engine reads terminals byte by byte, and each goes on as long as it can. Where one may go on with some escape, it
takes the backslash of any: so a backslash belongs to the terminal before it, and a terminal that begins with an escape
comes without. Which of them comes how is a state that goes from terminal to terminal.

The same holds of the "u" of escapes by code. There a terminal that may go on with some of them is let have no others
after it: that takes neighbouring terminals that tell control characters apart, other than line breaks and tabs.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.lark_syntax import LarkSource
from cvllm_jax.grammar.rule_walk import RuleWalk, Steps
from cvllm_jax.grammar.syntax_tree import And, Choice, Node, Not, Pattern, Repeat, Sequence, Symbol, Text
from cvllm_jax.grammar.text_encoding import TextEncoding, times

__all__ = ["escaped_rules"]

MAX_STEPS = 300_000
MAX_RULES = 20_000
MAX_REPEATED = 200


class _State(IntEnum):
    NOTHING = 0
    """No terminal has been: what is ignored stands between terminals, not in front of them."""
    BETWEEN = 1
    BEGUN = 2
    """The next escape's backslash has been read."""


def escaped_rules(source: LarkSource, encoding: TextEncoding) -> str:
    """The rules of a grammar, beginning with ``start``, whose texts are those of ``source`` as they are encoded.

    What is ignored stands between terminals only, not at the very end.

    Raises:
        GrammarError: it is too large.
    """
    return _Rewriter(source, encoding).text()


class _Rewriter:
    def __init__(self, source: LarkSource, encoding: TextEncoding) -> None:
        self._source = source
        self._encoding = encoding
        self._walk = RuleWalk[_State](source, self._after_terminal, Steps(MAX_STEPS))
        ignored = tuple(source.ignored)
        self._ignored = Repeat(Choice(ignored), 1, None) if ignored else None
        self._not_ignored: dict[int, Node] = {}
        self._rests: dict[int, Node | None] = {}
        self._repeats: dict[int, Node] = {}
        self._kept: list[object] = []
        """What is known by its id lives on."""
        self._lines: list[str] = []
        self._names: dict[tuple[object, ...], str] = {}
        self._pending: list[tuple[str, Callable[[], str]]] = []

    def text(self) -> str:
        begin = _State.NOTHING if self._source.ignored else _State.BETWEEN
        ends = sorted(self._walk.after_rule("start", begin) - {_State.BEGUN})
        if not ends:
            raise GrammarError("the grammar has no texts")
        starts = " | ".join(self._part(Symbol("start"), begin, end) for end in ends)
        self._lines.append(f"start: {starts}")
        while self._pending:
            name, body = self._pending.pop()
            self._lines.append(f"{name}: {body()}")
        self._lines += [f"{name}: {self._encoding.terminal(body)}" for name, body in self._source.terminals.items()]
        return "".join(f"{line}\n" for line in self._lines)

    def _new(self, key: tuple[object, ...], body: Callable[[], str], suffix: str = "") -> str:
        """The name of a rule that is made once for a key."""
        if key not in self._names:
            if len(self._names) >= MAX_RULES:
                raise GrammarError(f"it makes more than {MAX_RULES} rules in the format of this model's calls")
            self._names[key] = f"r{len(self._names)}"
            self._pending.append((self._names[key] + suffix, body))
        return self._names[key]

    # parts of rules

    def _after(self, node: Node, state: _State) -> frozenset[_State]:
        return self._walk.after(node, frozenset({state}))

    def _part(self, node: Node, begin: _State, end: _State) -> str:
        """An expression for a part of a rule that leads from one state to another, as it can."""
        match node:
            case Symbol(name) if not node.is_terminal:
                return self._new(("rule", name, begin, end), lambda: self._rule(name, begin, end))
            case Sequence(parts):
                return self._sequence(parts, begin, end)
            case Choice(options):
                possible = [self._part(it, begin, end) for it in options if end in self._after(it, begin)]
                return f"({' | '.join(possible)})"
            case Repeat():
                return self._repeat(node, begin, end)
        return self._terminal(node, False, begin, end)

    def _rule(self, name: str, begin: _State, end: _State) -> str:
        rule = self._source.rules[name]
        return self._terminal(rule.body, True, begin, end) if rule.lazy else self._part(rule.body, begin, end)

    def _sequence(self, parts: tuple[Node, ...], begin: _State, end: _State, first: int = 0) -> str:
        """The same for these parts from ``first`` on."""
        if len(parts) - first < 2:
            return self._part(parts[first], begin, end) if parts else '""'
        rest = Sequence(parts[first + 1 :])
        between = [it for it in sorted(self._after(parts[first], begin)) if end in self._after(rest, it)]

        def option(state: _State) -> str:
            return f"{self._part(parts[first], begin, state)} {self._sequence(parts, state, end, first + 1)}"

        if len(between) == 1:
            return option(between[0])
        self._kept.append(parts)
        return self._new(("sequence", id(parts), first, begin, end), lambda: " | ".join(map(option, between)))

    def _repeat(self, node: Repeat, begin: _State, end: _State) -> str:
        part, least, most = node.part, node.least, node.most
        if self._after(part, begin) == {begin}:
            return f"({self._part(part, begin, begin)}){times(least, most)}"
        if most is None and least == 0:
            return self._any_number(part, begin, end)
        if max(least, most or 0) > MAX_REPEATED:
            raise GrammarError(
                f"a repetition of more than {MAX_REPEATED} of what may begin or end with a character that JSON escapes "
                "is not supported"
            )
        return self._new(("repeat", id(node), begin, end), lambda: self._part(self._written_out(node), begin, end))

    def _written_out(self, node: Repeat) -> Node:
        """A repetition by its parts, the same ones whenever it is asked for."""
        if id(node) not in self._repeats:
            self._kept.append(node)
            tail: Node = Repeat(node.part, 0, None) if node.most is None else Sequence(())
            for _ in range((node.most or 0) - node.least):
                tail = Choice((Sequence(()), Sequence((node.part, tail))))
            self._repeats[id(node)] = Sequence((*(node.part,) * node.least, tail))
        return self._repeats[id(node)]

    def _any_number(self, part: Node, begin: _State, end: _State) -> str:
        reached = sorted(self._after(Repeat(part, 0, None), begin))

        def options() -> str:  # the engine is quicker where rules recur on the left
            more = [
                f"{self._any_number(part, begin, it)} {self._part(part, it, end)}"
                for it in reached
                if end in self._after(part, it)
            ]
            return " | ".join([*['""'] * (begin == end), *more])

        self._kept.append(part)
        return self._new(("any number", id(part), begin, end), options)

    # terminals

    def _after_terminal(self, node: Node, lazy: bool, states: frozenset[_State]) -> frozenset[_State]:
        found = states if self._source.may_be_empty(node) else frozenset[_State]()
        for state in states:
            used = node if state == _State.NOTHING else self._but_for_ignored(node)
            found = found.union(*(self._directly(used, lazy, it) for it in self._ignoring(state)))
        return found

    def _directly(self, node: Node, lazy: bool, begin: _State) -> frozenset[_State]:
        """The states after a terminal with nothing ignored before it."""
        if begin == _State.BEGUN and self._rest(node) is None:
            return frozenset()
        return frozenset({_State.BETWEEN} if lazy else {_State.BETWEEN, _State.BEGUN})

    def _ignoring(self, begin: _State) -> frozenset[_State]:
        """The states in which a terminal may begin, with something ignored before it or nothing."""
        if self._ignored is None or begin == _State.NOTHING:
            return frozenset({begin})
        return frozenset({begin}) | self._directly(self._ignored, False, begin)

    def _rest(self, node: Node) -> Node | None:
        if id(node) not in self._rests:
            self._kept.append(node)
            self._rests[id(node)] = self._encoding.rest(node, self._source)
        return self._rests[id(node)]

    def _terminal(self, node: Node, lazy: bool, begin: _State, end: _State) -> str:
        options = ['""'] if begin == end != _State.BETWEEN and self._source.may_be_empty(node) else []
        used = node if begin == _State.NOTHING else self._but_for_ignored(node)
        if end in self._directly(used, lazy, begin):
            options.append(self._written(used, lazy, begin, end))
        if self._ignored is not None and begin != _State.NOTHING:
            for state in sorted(self._directly(self._ignored, False, begin)):
                if end in self._directly(used, lazy, state):
                    ignored = self._written(self._ignored, False, begin, state)
                    options.append(f"{ignored} {self._written(used, lazy, state, end)}")
        return f"({' | '.join(options)})" if len(options) > 1 else options[0]

    def _but_for_ignored(self, node: Node) -> Node:
        """A terminal without the texts that are ignored where it may stand: so the engine reads them."""
        if self._ignored is None:
            return node
        if id(node) not in self._not_ignored:
            self._kept.append(node)
            self._not_ignored[id(node)] = And((node, Not(self._ignored)))
        return self._not_ignored[id(node)]

    def _written(self, node: Node, lazy: bool, begin: _State, end: _State) -> str:
        """A terminal by itself."""
        self._kept.append(node)
        written = self._rest(node) if begin == _State.BEGUN else node
        assert written is not None
        body = self._encoding.terminal(written)
        if lazy:
            return self._new(("lazy", id(node), begin), lambda: body, "[lazy]")
        if end == _State.BEGUN:
            body = rf'{body} "\\"'
        elif isinstance(written, Text | Pattern | Symbol):
            return body
        key = ("terminal", id(node), begin, end)
        if key not in self._names:
            if len(self._names) >= MAX_RULES:
                raise GrammarError(f"it makes more than {MAX_RULES} rules in the format of this model's calls")
            number = len(self._names)
            while f"T{number}" in self._source.terminals:
                number += MAX_RULES
            self._names[key] = f"T{number}"
            self._lines.append(f"{self._names[key]}: {body}")
        return self._names[key]
