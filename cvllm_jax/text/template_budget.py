"""The account that a running chat template is charged to.

A template comes with the model, from strangers. Everything it can do costs steps: a turn of a loop, a call,
64 characters of text made or read, an element of a list visited. Costs that depend on an argument are charged
before the work is done, so ``'a' * 10**10`` fails without being made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import TemplateRuntimeError

__all__ = [
    "CHARACTERS_PER_STEP",
    "MAX_DEPTH",
    "MAX_NESTING",
    "MAX_OUTPUT",
    "MAX_STEPS",
    "TemplateLimitError",
    "allot",
    "counted",
    "descend",
    "spend",
    "spend_output",
    "spend_text",
    "spend_value",
]

MAX_STEPS = 1_000_000
"""Work of one rendering. Real templates take 10 to 60 steps a message."""
MAX_OUTPUT = 1 << 24
"""Characters of one rendering: four times a context of a million tokens."""
MAX_DEPTH = 64
"""Macros, blocks and recursive loops inside each other."""
MAX_NESTING = 256
"""Lists and objects inside each other."""
CHARACTERS_PER_STEP = 64


class TemplateLimitError(TemplateRuntimeError):
    """The template asks for more than one rendering may use."""


class _Account:
    __slots__ = ("depth", "output", "steps")

    def __init__(self) -> None:
        self.steps = MAX_STEPS
        self.output = MAX_OUTPUT
        self.depth = 0


_account: ContextVar[_Account] = ContextVar("template_account")


@contextmanager
def allot() -> Iterator[None]:
    """Give the templates that run inside this block a fresh account."""
    token = _account.set(_Account())
    try:
        yield
    finally:
        _account.reset(token)


def spend(steps: int = 1) -> None:
    account = _account.get()
    account.steps -= steps
    if account.steps < 0:
        raise TemplateLimitError(f"it takes more than {MAX_STEPS:,} steps")


def spend_text(characters: int) -> None:
    """Pay for text of this length."""
    spend(1 + characters // CHARACTERS_PER_STEP)


def spend_output(characters: int) -> None:
    account = _account.get()
    account.output -= characters
    if account.output < 0:
        raise TemplateLimitError(f"it writes more than {MAX_OUTPUT:,} characters")


def spend_value(value: Any) -> None:
    """Pay for reading a value to its leaves, as printing or comparing it does.

    A list that holds another one many times is paid for as often: ``[a, a]`` repeated doubles its text.
    """
    level = [value]
    for _ in range(MAX_NESTING):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                spend_text(len(item))
            elif isinstance(item, Mapping):
                spend(1 + 2 * len(item))
                below += item.keys()
                below += item.values()
            elif isinstance(item, list | tuple | set | frozenset) or type(item) in _VIEWS:
                spend(1 + len(item))
                below += item
            elif isinstance(item, range):
                spend(1 + len(item))
            elif isinstance(item, int):
                spend_text(item.bit_length())
            else:
                spend()
        if not below:
            return
        level = below
    raise TemplateLimitError(f"it nests values more than {MAX_NESTING} deep")


def counted(values: Iterable[Any], price: int = 1) -> Iterator[Any]:
    """The same values, each paid for when it is drawn."""
    for value in values:
        spend(price)
        yield value


@contextmanager
def descend() -> Iterator[None]:
    """One level of recursion."""
    account = _account.get()
    account.depth += 1
    if account.depth > MAX_DEPTH:
        raise TemplateLimitError(f"it calls itself more than {MAX_DEPTH} levels deep")
    try:
        yield
    finally:
        account.depth -= 1


_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
