"""Lists of tensors' names as an error shows them: short, and none left out where they differ by numbers only."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import groupby

__all__ = ["listed"]

_NUMBER = re.compile(r"(?<![^.])(0|[1-9][0-9]{0,5})(?![^.])")
_MOST_ENTRIES = 20

#: The numbers at one place of a name, for each such place.
type _Places = tuple[tuple[int, ...], ...]


def listed(names: Iterable[str], *, alike: bool = False, most_characters: int = 120) -> str:
    """``model.layers.0-29.mlp.up_proj.weight, model.norm.weight``: entries stand for all combinations of their numbers.

    Of more than 20 entries the others are counted.

    Arguments:
      alike: take a number that comes again in a name for the same one: a layer, where names of it are compared.
      most_characters: what an entry is cut to.
    """
    by_form: dict[str, set[tuple[int, ...]]] = {}
    for name in names:
        numbers = [int(number) for number in _NUMBER.findall(name)]
        different = tuple(dict.fromkeys(numbers)) if alike else tuple(numbers)
        places = iter([different.index(number) for number in numbers] if alike else range(len(numbers)))
        escaped = name.replace("{", "{{").replace("}", "}}")
        form = _NUMBER.sub(lambda _, places=places: f"{{{next(places)}}}", escaped)  # type: ignore[misc]
        by_form.setdefault(form, set()).add(different)
    entries: list[tuple[str, int]] = []
    for form, found in by_form.items():
        for product in _joined(found):
            text = _short(form.format(*map(_ranges, product)), most_characters)
            entries.append((text, math.prod(map(len, product))))
    left = sum(count for _, count in entries[_MOST_ENTRIES:])
    return ", ".join(text for text, _ in entries[:_MOST_ENTRIES]) + (f" and {left} more" if left else "")


def _short(name: str, most: int) -> str:
    """A name of any length and content on one line."""
    name = name if name.isprintable() else repr(name)
    return name if len(name) <= most else name[: most - 3] + "..."


def _joined(found: set[tuple[int, ...]]) -> list[_Places]:
    """Combinations of numbers as products of lists: those whose first numbers have the same others go together."""
    if found == {()}:
        return [()]
    others: dict[int, set[tuple[int, ...]]] = {}
    for first, *rest in found:
        others.setdefault(first, set()).add(tuple(rest))
    by_rest: dict[frozenset[tuple[int, ...]], list[int]] = {}
    for first, rests in sorted(others.items()):
        by_rest.setdefault(frozenset(rests), []).append(first)
    return [(tuple(firsts), *places) for rests, firsts in by_rest.items() for places in _joined(set(rests))]


def _ranges(numbers: tuple[int, ...]) -> str:
    """``0-3,7`` of sorted numbers."""
    parts = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        parts.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ",".join(parts)
