"""How a format writes calls, for grammars that make a model write them."""

from __future__ import annotations

from dataclasses import dataclass

from cvllm_jax.grammar.value_rules import Notation

__all__ = ["CallForm", "JsonCalls", "NamedCalls", "PythonCalls", "TaggedCalls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """The calls of an answer are ``opening``, calls with ``separator`` between them, ``closing``."""

    begin: str
    end: str
    separator: str = ""
    opening: str = ""
    closing: str = ""
    parallel: bool = True
    """An answer may have several calls."""
    trigger: str | None = None
    """What starts calls amid text, of the beginning of ``opening`` and ``begin``; None: all of these, empty: nothing,
    so that an answer is calls or text."""
    not_in_text: tuple[str, ...] = ()
    """Patterns, in Rust's syntax, of what else the parser reads as the beginning of a call."""
    free_text: bool = True
    """Text that is in no markup is content."""
    names: str = r"[\w.:/-]+"
    """A pattern of the functions' names that the parser reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonCalls(CallForm):
    """Each call is ``begin {"name": NAME, "arguments": VALUE} end``."""

    name_key: str = "name"
    arguments_key: str = "arguments"
    notation: Notation | None = None
    """Of the arguments; None: JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedCalls(CallForm):
    """Each call is ``begin NAME between VALUE end``."""

    between: str
    notation: Notation | None = None
    """Of the arguments; None: JSON."""
    retyped: bool = False
    """A string is read as what the tool declares, where it fits: ``"1"`` as a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonCalls(CallForm):
    """Each call is ``begin NAME(argument=VALUE, ...) end``."""

    notation: Notation


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedCalls(CallForm):
    """Each call is ``begin NAME between`` arguments ``end``, each argument ``before NAME after VALUE close``.

    Strings stand there as they are, other values as JSON.
    """

    between: str
    before: str
    after: str
    close: str
    notation: Notation
    """Of values that are no strings."""
    argument_names: str = r"[^\s<>]+"
    """A pattern of the arguments' names that the parser reads."""
    strips: bool = False
    """Whitespace around a string is no part of it."""
    quoted: bool = False
    """Strings are JSON like all other values."""
