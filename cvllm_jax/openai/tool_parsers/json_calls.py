"""Calls written as JSON objects, ``{"name": ..., "arguments": {...}}``, as most formats have them between markers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from cvllm_jax.openai.tool_parsers.json_scanner import json_text, json_value
from cvllm_jax.openai.tool_parsers.output import Output
from cvllm_jax.openai.tool_parsers.reader import Steps, TextReader, discard

__all__ = ["JsonCall", "Keys", "Outcome", "json_calls"]


@dataclass(frozen=True, slots=True)
class Keys:
    """What a call's object has its name and its arguments under."""

    name: str = "name"
    arguments: tuple[str, ...] = ("arguments", "parameters")


class Outcome(Enum):
    """How reading a call went."""

    CALL = auto()
    """A call, whole."""
    BROKEN = auto()
    """A call that is malformed after its name, or cut."""
    OBJECT = auto()
    """A whole object that is no call."""
    TEXT = auto()
    """Neither."""


class JsonCall:
    """Reads one object and reports the call it is, as soon as that is certain.

    With ``eager`` a name makes it one. Without, as is right for objects without any marker, which may be the answer
    itself, a name and arguments do, or a name at which the text is cut.
    """

    def __init__(self, reader: TextReader, output: Output, *, eager: bool = True, keys: Keys = Keys()) -> None:
        self._reader = reader
        self._output = output
        self._eager = eager
        self._keys = keys
        self._name = ""
        self._started = False
        self._has_arguments = False
        self._early: list[str] = []
        """Arguments that stand before the name."""

    def read(self) -> Steps[Outcome]:
        reader = self._reader
        reader.take()  # the brace
        whole = yield from self._pairs()
        if self._name and not self._started and not (yield from reader.peek()) and not whole:
            self._start()
        if self._started:
            if whole:
                self._output.finish_call()
            return Outcome.CALL if whole else Outcome.BROKEN
        return Outcome.OBJECT if whole else Outcome.TEXT

    def _pairs(self) -> Steps[bool]:
        """Read up to and with the closing brace; False where the text is not such an object."""
        reader = self._reader
        while True:
            yield from reader.spaces()
            char = yield from reader.peek()
            if char == "}":
                reader.take()
                return True
            if char != '"':
                return False
            key: list[str] = []
            if not (yield from json_text(reader, key.append)):
                return False
            yield from reader.spaces()
            if (yield from reader.literal(":")) is None:
                return False
            yield from reader.spaces()
            if not (yield from self._value("".join(key))):
                return False
            yield from reader.spaces()
            yield from reader.literal(",")

    def _value(self, key: str) -> Steps[bool]:
        reader = self._reader
        is_text = (yield from reader.peek()) == '"'
        if key == self._keys.name and not self._name:
            name: list[str] = []
            if not is_text or not (yield from json_text(reader, name.append)) or not _is_name("".join(name)):
                return False
            self._name = "".join(name)
            if self._eager or self._has_arguments:
                self._start()
            return True
        if key in self._keys.arguments and not self._has_arguments:
            self._has_arguments = True
            if self._name and not self._started:
                self._start()
            sink = self._output.arguments if self._started else self._early.append
            # Arguments as a string hold the JSON text; they are not quoted once more.
            return (yield from (json_text if is_text else json_value)(reader, sink))
        return (yield from json_value(reader, discard))

    def _start(self) -> None:
        self._started = True
        self._reader.release()
        self._output.start(self._name)
        self._output.arguments("".join(self._early))


def _is_name(text: str) -> bool:
    """Whether ``text`` can name a tool. A string that was not closed runs on into markers and the next lines."""
    return bool(text) and text.isprintable() and "<" not in text


def json_calls(reader: TextReader, output: Output, *, eager: bool = True, keys: Keys = Keys()) -> Steps[Outcome]:
    """Read one call, a list of calls, or several with ``,``, ``;`` or whitespace between them.

    TEXT means that it does not begin with a call; what was read since the caller's ``reader.hold()`` is content.
    After any other outcome the reader holds what was read after the last call.
    """
    outcome = Outcome.TEXT
    yield from reader.spaces()
    in_list = (yield from reader.literal("[")) is not None
    while True:
        yield from reader.spaces()
        if in_list and (yield from reader.literal("]")):
            if outcome is not Outcome.TEXT:
                reader.hold()
            return outcome
        if (yield from reader.peek()) != "{":
            return outcome
        found = yield from JsonCall(reader, output, eager=eager, keys=keys).read()
        if found is Outcome.TEXT or (found is Outcome.OBJECT and outcome is Outcome.TEXT):
            return outcome
        if found is Outcome.OBJECT:
            output.content(reader.release())
        else:
            outcome = found
        reader.hold()
        if outcome is Outcome.BROKEN:
            return outcome
        yield from reader.spaces()
        yield from reader.literal(",", ";")
        if in_list:
            reader.hold()  # separators of a list are markup
