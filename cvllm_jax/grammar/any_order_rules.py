"""The rules of :mod:`~cvllm_jax.grammar.any_order`, in the Lark dialect of the constraint engine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["COUNTED", "ArrayRule", "ObjectRule", "Rule", "TextRule"]

#: How many names of an object have a bit. One of the parameter's 64 says that there was another name.
COUNTED = 63


@dataclass(frozen=True, slots=True)
class TextRule:
    """What an expression matches, or else a terminal."""

    expression: str = ""
    terminal: str = ""

    def uses(self) -> Iterator[str]:
        """The rules in it, by name."""
        yield from ()

    def possible(self, possible: set[str]) -> bool:
        """Whether some text follows it, if some follows the ones named and no others."""
        return True

    def written(self, name: str, possible: set[str]) -> tuple[str, list[str]]:
        """An expression for it, and rules that the expression needs, whose names begin with ``name``."""
        if self.expression:
            return self.expression, []
        return name.upper(), [f"{name.upper()}: {self.terminal}"]


@dataclass(frozen=True, slots=True)
class ArrayRule:
    """An array: rules of its first items and of the rest."""

    prefix: list[str]
    rest: str
    least: int
    most: int | None

    def uses(self) -> Iterator[str]:
        yield from (*self.prefix, self.rest)

    def possible(self, possible: set[str]) -> bool:
        return self.least <= self._longest(possible)

    def written(self, name: str, possible: set[str]) -> tuple[str, list[str]]:
        longest, first = self._longest(possible), len(self.prefix)
        lines = []
        for index in range(int(min(first, longest))):
            after = f"{name}_{index + 1}" if index + 1 < longest else ""
            lines.append(self._item(f"{name}_{index}", index, f"{self.prefix[index]} {after}"))
        if longest > first:
            more = longest - first - 1
            counts = f"{max(self.least - first - 1, 0)},{'' if more == math.inf else int(more)}"
            after = f'("," {self.rest}){{{counts}}}' if more else ""
            lines.append(self._item(f"{name}_{first}", first, f"{self.rest} {after}"))
        return name, [f'{name}: "[" {f"{name}_0" if lines else ""} "]"', *lines]

    def _item(self, name: str, index: int, body: str) -> str:
        """The rule of the item at an index with all that follow it."""
        body = f'"," {body}' if index else body
        return f"{name}: {body if index < self.least else f'({body})?'}"

    def _longest(self, possible: set[str]) -> float:
        most = math.inf if self.most is None else self.most
        for index, item in enumerate(self.prefix):
            if item not in possible:
                return min(index, most)
        return min(math.inf if self.rest in possible else len(self.prefix), most)


@dataclass(frozen=True, slots=True)
class ObjectRule:
    """An object: rules of its members' values by name, the required ones first, and of other members' names and values.

    Members with a name come once; others may be repeated. So may those beyond :data:`COUNTED`, which are optional.
    """

    members: dict[str, str]
    required: int
    others: list[tuple[str, str]]
    least: int
    most: int | None

    def uses(self) -> Iterator[str]:
        yield from self.members.values()
        for pair in self.others:
            yield from pair

    def possible(self, possible: set[str]) -> bool:
        values = list(self.members.values())
        named = sum(value in possible for value in values)
        most = math.inf if self.most is None else self.most
        return (
            all(value in possible for value in values[: self.required])
            and self.least <= named + any(possible.issuperset(pair) for pair in self.others)
            and max(self.least, self.required) <= most
        )

    def written(self, name: str, possible: set[str]) -> tuple[str, list[str]]:
        names = [member for member, value in self.members.items() if value in possible]
        others = [pair for pair in self.others if possible.issuperset(pair)]
        counted, needed = min(len(names), COUNTED), self.required
        optional = f"[{needed}:{counted}]"
        room = (counted if self.most is None else min(counted, self.most)) - needed

        member, after = f"{name}_m", f"{name}_n"
        choices = []
        for index, text in enumerate(names):
            # the text of the member's name is a JSON string, and so is what spells that text in the grammar
            begins = f'{_quoted(_quoted(text))} ":" {self.members[text]} {after}'
            if index >= COUNTED:
                choices.append(f"{begins}::_")
            elif index < needed or room == counted - needed:
                choices.append(f"{begins}::set_bit({index}) %if bit_clear({index})")
            elif room:
                choices.append(
                    f"{begins}::set_bit({index}) %if and(bit_clear({index}), bit_count_lt({optional}, {room}))"
                )
        choices += [f'{key} ":" {value} {after}::set_bit({COUNTED})' for key, value in others]
        empty = ['"{" "}"'] if needed == 0 and self.least == 0 else []
        if not choices:
            return empty[0], []

        enough = [f"is_ones([0:{needed}])"] if needed else []
        if self.least > needed:
            enough.append(f"bit_count_ge([0:{COUNTED + 1}], {self.least})")
        more = [f"bit_count_lt([0:{needed}], {needed})"] if needed else []
        if room:
            more.append(f"bit_count_lt({optional}, {room})")
        if others or len(names) > COUNTED:
            more = []
        return name, [
            f"{name}: {' | '.join([f'"{{" {member}::0x0', *empty])}",
            f"{member}::_: {' | '.join(choices)}",
            f'{after}::_: "}}"{_condition("and", enough)} | "," {member}::_{_condition("or", more)}',
        ]


type Rule = TextRule | ArrayRule | ObjectRule


def _condition(operator: str, conditions: list[str]) -> str:
    if not conditions:
        return ""
    return f" %if {conditions[0] if len(conditions) == 1 else f'{operator}({", ".join(conditions)})'}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
