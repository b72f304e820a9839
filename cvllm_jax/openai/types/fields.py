"""How fields of wire types behave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, Field

__all__ = ["OPEN", "STRICT", "optional"]

STRICT = ConfigDict(strict=True)
"""A number in quotes is not a number."""

OPEN = ConfigDict(strict=True, extra="allow")
"""Strict, and keys that are not listed are kept."""

_absent: Callable[[Any], bool] = lambda value: value is None  # noqa: E731


def optional() -> Any:
    """A field that is left out of the JSON while it is None."""
    return Field(default=None, exclude_if=_absent)
