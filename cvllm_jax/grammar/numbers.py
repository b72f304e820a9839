"""Numbers of a schema, made such that rounding cannot carry an answer across a bound."""

from __future__ import annotations

import decimal
import math
from decimal import Decimal
from typing import TypeGuard

__all__ = ["MAX_MULTIPLE", "Multiples", "beyond", "exact", "inward", "is_number"]

MAX_MULTIPLE = 10_000
"""Of ``multipleOf``, also of what several have in common: the engine's automaton has that many states."""
_LARGEST = 2**63 - 1024  # the largest double that the engine's 64-bit integers hold
_SMALLEST = Decimal("1e-30")  # what stands in for "just above 0"; the next double would be 324 digits long
_DIGITS = 15  # what every reader of decimals, the engine's too, turns into the same double


def is_number(value: object) -> TypeGuard[int | float]:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def exact(value: object) -> bool:
    """Whether a constant is the same number after it was a double; true for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return abs(value) <= 2**53 if isinstance(value, int) else math.isfinite(value)


def inward(value: int | float, *, lower: bool, exclusive: bool, integer: bool) -> float | int | None:
    """An inclusive bound that admits only what the given one does; None where there is none.

    A validator reads ``0.99999999999999999999`` as 1.0, so an exclusive bound becomes the next number inside that has
    15 digits. What lies between is missed.

    Arguments:
        integer: only integers are compared with it. Those beyond 64 bits, which the engine does not know, are missed.
    """
    if abs(value) > _LARGEST:
        if not integer or (value > 0) == lower:
            return None
        return -_LARGEST if lower else _LARGEST
    if isinstance(value, int) and abs(value) > 2**53:
        bound = float(value)
        if bound == value and not exclusive:
            return value
        inside = bound > value if lower else bound < value
        return int(bound if inside else math.nextafter(bound, math.inf if lower else -math.inf))
    if isinstance(value, int) and not exclusive:
        return value
    given = Decimal(repr(value))
    context = decimal.Context(_DIGITS, decimal.ROUND_CEILING if lower else decimal.ROUND_FLOOR)
    rounded = context.plus(given)
    if exclusive and rounded == given:
        rounded = context.next_plus(given) if lower else context.next_minus(given)
        if not given:
            rounded = _SMALLEST if lower else -_SMALLEST
    if rounded and abs(rounded) < _SMALLEST:
        return None
    return int(rounded) if rounded == rounded.to_integral_value() else float(rounded)


def beyond(value: int | float, *, lower: bool) -> float | int | None:
    """The inclusive bound that admits what the inclusive bound ``value`` does not: an upper one for a lower one."""
    if abs(value) == float(_SMALLEST) and (value > 0) == lower:
        return 0  # what stood in for a bound that excluded it
    return inward(value, lower=not lower, exclusive=True, integer=False)


class Multiples:
    """The least common multiple of all ``multipleOf`` in a schema, any of which may come to be combined."""

    def __init__(self) -> None:
        self._common = 1

    def add(self, value: int | float) -> bool:
        """False where the value cannot be enforced.

        Fractions cannot: by validators' arithmetic, 0.07 is no multiple of 0.01.
        """
        if value != int(value):
            return False
        self._common = math.lcm(self._common, int(value))
        return self._common <= MAX_MULTIPLE
