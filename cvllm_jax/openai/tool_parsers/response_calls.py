"""The calls in a region of a ``response_template``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from cvllm_jax.openai.tool_parsers.argument_types import ArgumentTypes, dump, json_of
from cvllm_jax.openai.tool_parsers.json_calls import Keys, Outcome, json_calls
from cvllm_jax.openai.tool_parsers.output import Output
from cvllm_jax.openai.tool_parsers.reader import Sink, Steps, TextReader
from cvllm_jax.openai.tool_parsers.response_fields import ResponseField
from cvllm_jax.openai.tool_parsers.response_regions import Delimiter
from cvllm_jax.openai.tool_parsers.response_values import fill, placeholder

__all__ = ["CallRegion", "call_region", "keys_of"]


class CallRegion(ABC):
    """Takes the text of one region and reports the calls in it."""

    @abstractmethod
    def write(self, text: str) -> None: ...

    @abstractmethod
    def close(self, closed: Delimiter | None) -> None:
        """The region ends, with its delimiter or, with None, because the text does."""


def call_region(
    field: ResponseField, output: Output, types: ArgumentTypes, opened: Delimiter, content: Sink
) -> CallRegion:
    """What reads a region of ``field``: as it arrives where the arguments are plain JSON, else when it is complete.

    ``content`` takes the text of a region without calls.
    """
    function = field.transform.get("function") if isinstance(field.transform, Mapping) else None
    name = _name(function, opened)
    if field.content == "json" and not field.content_args:
        if name and isinstance(function, Mapping) and placeholder(function.get("arguments")) == ["content"]:
            return _Arguments(output, name)
        if (keys := keys_of(function, each=field.transform_each)) is not None:
            return _Objects(output, keys, opened, content)
    return _Values(field, output, types, opened, name, content)


def _name(function: Any, opened: Delimiter) -> str:
    """The name of the call, if the opening delimiter has it."""
    path = placeholder(function.get("name")) if isinstance(function, Mapping) else None
    return opened.groups.get(path[0], "") if path is not None and len(path) == 1 else ""


def keys_of(function: Any, *, each: bool) -> Keys | None:
    """Where each object has name and arguments, if they are all that the transform picks."""
    if not each and placeholder(function) == ["content"]:
        return Keys("name", ("arguments",))
    if not isinstance(function, Mapping) or set(function) != {"name", "arguments"}:
        return None
    paths = [placeholder(function["name"]), placeholder(function["arguments"])]
    before = [] if each else ["content"]
    if any(path is None or path[:-1] != before for path in paths):
        return None
    name, arguments = (path[-1] for path in paths if path is not None)
    return Keys(name, (arguments,))


class _Arguments(CallRegion):
    """The delimiter has the name and the region is the arguments."""

    def __init__(self, output: Output, name: str) -> None:
        self._output = output
        self._space: list[str] = []
        self._begins = True
        output.start(name)

    def write(self, text: str) -> None:
        body = (text.lstrip() if self._begins else text).rstrip()
        space = text[len(text.rstrip()) :]
        if body:
            self._output.arguments("".join(self._space) + body)
            self._space, self._begins = [], False
        if space and not self._begins:
            self._space.append(space)

    def close(self, closed: Delimiter | None) -> None:
        if closed is not None:
            self._output.finish_call()


class _Objects(CallRegion):
    """The region is an object, or a list of objects, with names and arguments."""

    def __init__(self, output: Output, keys: Keys, opened: Delimiter, content: Sink) -> None:
        self._output = output
        self._content = content
        self._opened = opened
        self._reader = TextReader()
        self._outcome = Outcome.TEXT
        self._steps = self._read(keys)
        next(self._steps)

    def _read(self, keys: Keys) -> Steps[None]:
        self._reader.hold()
        self._outcome = yield from json_calls(self._reader, self._output, keys=keys)
        while (yield from self._reader.peek()):
            self._reader.take()

    def write(self, text: str) -> None:
        self._reader.feed(text)
        next(self._steps)

    def close(self, closed: Delimiter | None) -> None:
        self._reader.end()
        next(self._steps, None)
        rest = self._reader.release()
        if self._outcome is Outcome.TEXT:
            self._content(self._opened.text + rest + (closed.text if closed is not None else ""))
        elif self._outcome is Outcome.BROKEN and closed is not None:
            self._output.finish_call()


class _Values(CallRegion):
    """The region becomes a value, and the value calls."""

    def __init__(
        self,
        field: ResponseField,
        output: Output,
        types: ArgumentTypes,
        opened: Delimiter,
        name: str,
        content: Sink,
    ) -> None:
        self._content = content
        self._field = field
        self._output = output
        self._types = types
        self._opened = opened
        self._name = name
        self._text: list[str] = []

    def write(self, text: str) -> None:
        self._text.append(text)

    def close(self, closed: Delimiter | None) -> None:
        text = "".join(self._text)
        groups = {**self._opened.groups, **(closed.groups if closed is not None else {})}
        try:
            calls = [(name, self._arguments(name, value)) for name, value in _calls(self._field, text, groups)]
        except ValueError:
            # a name makes a call, whatever its arguments are
            calls = [(self._name, text.strip())] if self._name else []
        for name, arguments in calls:
            self._output.start(name)
            self._output.arguments(arguments)
            if closed is not None:
                self._output.finish_call()
        if not calls:
            self._content(self._opened.text + text + (closed.text if closed is not None else ""))

    def _arguments(self, function: str, value: Any) -> str:
        if not isinstance(value, Mapping):
            return value if isinstance(value, str) else dump(value)
        pairs = []
        for key, argument in value.items():
            types = self._types.of(function, key)
            pairs.append(f"{dump(key)}: {json_of(argument, types) if isinstance(argument, str) else dump(argument)}")
        return f"{{{', '.join(pairs)}}}"


def _calls(field: ResponseField, text: str, groups: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Name and arguments of each call. Raises ValueError if the text is not what the field says."""
    value = field.parse(text)
    if field.transform_each:
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise ValueError("not a list of objects")
        value = [fill(field.transform, {**groups, **item}) for item in value]
    elif field.transform is not None:
        value = fill(field.transform, {**groups, "content": value})
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise ValueError("not a call")
        yield function["name"], function.get("arguments", {})
