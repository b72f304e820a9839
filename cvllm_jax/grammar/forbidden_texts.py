"""Which texts of a grammar may have some forbidden texts in them, by what has been read after each of its parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.lark_syntax import LarkSource
from cvllm_jax.grammar.regex_syntax import read_regex
from cvllm_jax.grammar.rule_walk import RuleWalk, Steps, after
from cvllm_jax.grammar.syntax_tree import And, Characters, Node, Not, Pattern, Symbol, Text

__all__ = ["ForbiddenTexts"]

MAX_STEPS = 500_000

_ANY_TEXT = read_regex("(?s:.*)")

#: The longest beginning of a forbidden text that the text so far ends with, and the same of the terminal so far. None:
#: a forbidden text was there that no terminal has in it by itself.
type _State = tuple[str, str] | None
type _States = frozenset[_State]


class ForbiddenTexts:
    """What terminals have in them by themselves, an intersection keeps out of them; what several terminals make
    together, nothing does."""

    def __init__(self, source: LarkSource, forbidden: Iterable[str]) -> None:
        self._source = source
        self._forbidden = tuple(filter(None, forbidden))
        self._relevant = sorted(set("".join(self._forbidden)))
        self._steps = Steps(MAX_STEPS)
        self._held = False
        self._reads: dict[tuple[str, str], str | None] = {}
        self._terminals: dict[tuple[int, _State], _States] = {}
        self._kept: list[Node] = []
        """What is known by its id lives on."""

    def within(self, terminal: Node) -> bool:
        """Whether a terminal may have a forbidden text in it."""
        self._held = False
        self._of_terminal(terminal, frozenset({("", "")}))
        return self._held

    def check(self, close: str) -> None:
        """Raises GrammarError if texts may have forbidden ones across terminals, ``close`` after them included."""
        walk = RuleWalk(self._source, self._after_terminal, self._steps)
        begins = self._first(close, "")
        for state in walk.after_rule("start", ("", "")):
            if state is None or self._first(close, state[0]) != begins:
                marks = " or ".join(map(repr, self._forbidden))
                raise GrammarError(
                    f"its texts may have {marks} in them, which ends a text in this model's format of calls"
                )

    def _first(self, text: str, state: str) -> int | None:
        """Where in a text the first forbidden one ends."""
        for index, character in enumerate(text):
            read = self._read(state, character)
            if read is None:
                return index
            state = read
        return None

    def _read(self, state: str, character: str) -> str | None:
        """The state after one more character; None at the end of a forbidden text."""
        if (state, character) not in self._reads:
            text = state + character
            rests = (text[at:] for at in range(len(text)))
            begun = next((rest for rest in rests if any(it.startswith(rest) for it in self._forbidden)), "")
            self._reads[state, character] = None if text.endswith(self._forbidden) else begun
        return self._reads[state, character]

    def _after_terminal(self, node: Node, lazy: bool, states: _States) -> _States:
        """After a terminal, and after what is ignored behind it."""
        self._kept.append(node)
        for state in states:
            if (id(node), state) not in self._terminals:
                self._terminals[id(node), state] = self._after_one(node, frozenset({state}))
        return frozenset[_State]().union(*(self._terminals[id(node), state] for state in states))

    def _after_one(self, node: Node, states: _States) -> _States:
        found = _begun(self._of_terminal(node, states))
        before: _States = frozenset()
        while before != found:
            before = found
            found = found.union(*(_begun(self._of_terminal(it, found)) for it in self._source.ignored))
        return found

    def _of_terminal(self, node: Node, states: _States) -> _States:
        return after(node, states, self._leaf, self._steps)

    def _leaf(self, node: Node, states: _States) -> _States:
        match node:
            case Symbol():
                return self._of_terminal(self._source.terminal(node), states)
            case Pattern(body):
                return self._of_terminal(body, states)
            case And(parts):
                return reduce(frozenset.intersection, (self._of_terminal(it, states) for it in parts))
            case Not():
                return self._of_terminal(_ANY_TEXT, states)
            case Text(text):
                return reduce(lambda before, it: self._step(before, [it]), text, states)
            case Characters():
                others = node.others or node.ascii.difference(self._relevant)
                return self._step(states, [it for it in self._relevant if node.has(it)] + [""] * bool(others))
        raise TypeError(f"a {type(node).__name__} is no part of a terminal")

    def _step(self, states: _States, characters: Sequence[str]) -> _States:
        """After one of these characters, of which an empty one is any that no forbidden text has in it."""
        found: set[_State] = set()
        for state in states:
            for character in characters:
                self._steps.count()
                if state is None:
                    found.add(None)
                    continue
                text, terminal = (self._read(it, character) if character else "" for it in state)
                if terminal is None:
                    self._held = True  # and will be kept out
                else:
                    found.add(None if text is None else (text, terminal))
        return frozenset(found)


def _begun(states: _States) -> _States:
    """States in which a terminal begins."""
    return frozenset(state and (state[0], "") for state in states)
