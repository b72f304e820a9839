"""States followed through the rules of a grammar."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from cvllm_jax.errors import shown
from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.lark_syntax import LarkSource
from cvllm_jax.grammar.syntax_tree import Choice, Node, Repeat, Sequence, Symbol

__all__ = ["RuleWalk", "Steps"]


class Steps:
    """Counts steps, of which hostile grammars need very many."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def count(self) -> None:
        """Raises GrammarError where there are too many."""
        self._left -= 1
        if self._left < 0:
            raise GrammarError("it is too large for the format of this model's calls")


class RuleWalk[S]:
    """In which states parts of rules may leave a reader that begins in others.

    Arguments:
        terminal: the states after a terminal, which is one that ends as early as it can or not.
    """

    def __init__(
        self, source: LarkSource, terminal: Callable[[Node, bool, frozenset[S]], frozenset[S]], steps: Steps
    ) -> None:
        self._source = source
        self._terminal = terminal
        self._steps = steps
        self._ends: dict[tuple[str, S], frozenset[S]] = {}

    def after_rule(self, name: str, state: S) -> frozenset[S]:
        """The states after a rule."""
        self._ends.setdefault((name, state), frozenset())
        before: dict[tuple[str, S], frozenset[S]] = {}
        while before != self._ends:
            before = dict(self._ends)
            for (rule, begin), known in before.items():
                body, lazy = self._source.rules[rule].body, self._source.rules[rule].lazy
                begun = frozenset({begin})
                found = self._terminal(body, True, begun) if lazy else self.after(body, begun)
                self._ends[rule, begin] = known | found
        return self._ends[name, state]

    def after(self, node: Node, states: frozenset[S]) -> frozenset[S]:
        """The states after a part of a rule, as far as they are known: all of them once :meth:`after_rule` has
        followed a rule that it is in."""
        return after(node, states, self._leaf, self._steps)

    def _leaf(self, node: Node, states: frozenset[S]) -> frozenset[S]:
        if not isinstance(node, Symbol) or node.is_terminal:
            return self._terminal(node, False, states)
        if node.name not in self._source.rules:
            raise GrammarError(f"the grammar has no rule {shown(node.name)}")
        return frozenset[S]().union(*(self._ends.setdefault((node.name, state), frozenset()) for state in states))


def after[S](
    node: Node, states: frozenset[S], leaf: Callable[[Node, frozenset[S]], frozenset[S]], steps: Steps
) -> frozenset[S]:
    """The states after a sequence, a choice, a repetition, or a ``leaf``."""
    steps.count()
    match node:
        case Sequence(parts):
            return reduce(lambda before, part: after(part, before, leaf, steps), parts, states)
        case Choice(options):
            return frozenset[S]().union(*(after(option, states, leaf, steps) for option in options))
        case Repeat(part, least, _):  # how often matters only for whether it may be left out
            found = states if least == 0 else after(part, states, leaf, steps)
            while not (more := after(part, found, leaf, steps)) <= found:
                found |= more
            return found
    return leaf(node, states)
