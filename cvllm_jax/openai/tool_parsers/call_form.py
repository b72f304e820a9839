"""How a format writes calls, for grammars that make a model write them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CallForm", "JsonCalls", "NamedCalls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonCalls:
    """Each call is ``begin {"name": NAME, "arguments": {...}} end``."""

    begin: str
    separator: str
    end: str
    name_key: str = "name"
    arguments_key: str = "arguments"
    parallel: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedCalls:
    """Each call is ``begin NAME between {...} end``."""

    begin: str
    between: str
    separator: str
    end: str
    parallel: bool = True
    """An answer may have several calls."""


type CallForm = JsonCalls | NamedCalls
