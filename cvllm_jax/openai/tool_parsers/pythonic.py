"""Llama 3.2 and 4, ToolACE and others: a list of Python calls."""

from __future__ import annotations

import json
import re

from cvllm_jax.grammar.patterns import literal
from cvllm_jax.openai.tool_parsers.argument_types import ArgumentTypes
from cvllm_jax.openai.tool_parsers.call_form import CallForm, PythonCalls
from cvllm_jax.openai.tool_parsers.notations import PYTHON
from cvllm_jax.openai.tool_parsers.output import Output
from cvllm_jax.openai.tool_parsers.parser import ToolParser
from cvllm_jax.openai.tool_parsers.python_literals import json_of_literal
from cvllm_jax.openai.tool_parsers.reader import Steps, TextReader

__all__ = ["PythonicParser"]

_OPENINGS = ("<|python_start|>", "<|python_tag|>")
_CLOSING = "<|python_end|>"
_NAME = re.compile(r"[\w.:/-]*")
_PLAIN_NAME = re.compile(r"[\w.-]+")
"""Other names, such as addresses, are those of declared tools only: a link may begin an answer too."""
_CODE = re.compile(r"[^\"'()\[\]{},]*")
_IN_STRING = {"'": re.compile(r"[^'\\]*"), '"': re.compile(r'[^"\\]*')}
_ARGUMENT = re.compile(r"\s*(\w+)\s*=(?!=)")


class PythonicParser(ToolParser):
    """``[f(x=1), g(y="a", z=[2, 3])]`` at the beginning of the answer or after ``<|python_start|>``.

    An argument is passed on as JSON when it is complete. Values are literals; one that is not, such as a name or a
    sum, becomes a string of what was written: nothing is evaluated. Arguments without a name take the names that the
    tool declares, in order.

    Source: the chat templates of meta-llama/Llama-3.2-1B-Instruct and meta-llama/Llama-4-Scout-17B-16E-Instruct.
    """

    name = "pythonic"
    markers = (*_OPENINGS, _CLOSING)

    def call_form(self, chat_template: str) -> CallForm:
        marked = _OPENINGS[0] in chat_template
        return PythonCalls(
            begin="",
            end="",
            separator=", ",
            opening=f"{_OPENINGS[0]}[" if marked else "[",
            closing=f"]{_CLOSING}" if marked else "]",
            trigger="",
            not_in_text=tuple(map(literal, _OPENINGS)),
            notation=PYTHON,
        )

    def read(self, reader: TextReader, output: Output, types: ArgumentTypes) -> Steps[None]:
        reader.hold()
        while True:
            yield from reader.spaces()
            yield from reader.literal(*_OPENINGS)
            yield from reader.spaces()
            if (yield from reader.literal("[")) is not None:
                yield from self._calls(reader, output, types)
            output.content(reader.release())
            if (yield from reader.until(_OPENINGS, output.content)) is None:
                return
            reader.hold()

    def _calls(self, reader: TextReader, output: Output, types: ArgumentTypes) -> Steps[None]:
        while True:
            yield from reader.spaces()
            name: list[str] = []
            yield from reader.run(_NAME, name.append)
            yield from reader.spaces()
            function = "".join(name)
            known = types.has(function) or _PLAIN_NAME.fullmatch(function)
            if not known or (yield from reader.literal("(")) is None:
                return
            reader.release()
            output.start(function)
            whole = yield from _Arguments(reader, output, types.names(function)).read()
            reader.hold()
            if not whole:
                return
            yield from reader.spaces()
            if (yield from reader.literal("]")) is not None:
                reader.hold()
                yield from reader.spaces()
                if (yield from reader.literal(_CLOSING)) is not None:
                    reader.hold()
                return
            if (yield from reader.literal(",")) is None:
                return


class _Arguments:
    """Reads the arguments of one call and writes them as a JSON object."""

    def __init__(self, reader: TextReader, output: Output, declared: list[str]) -> None:
        self._reader = reader
        self._output = output
        self._declared = declared
        self._count = 0

    def read(self) -> Steps[bool]:
        """Whether the call is complete."""
        reader = self._reader
        source: list[str] = []
        depth = 0
        while True:
            yield from reader.run(_CODE, source.append)
            char = yield from reader.peek()
            if not char:
                return False
            if char in "\"'":
                yield from self._string(source)
                continue
            if depth == 0 and char in ",)]}":
                reader.take()
                self._write("".join(source))
                source = []
                if char != ",":
                    if self._count:
                        self._output.arguments("}")
                    self._output.finish_call()
                    return True
                continue
            depth += (char in "([{") - (char in ")]}")
            source.append(reader.take())

    def _string(self, source: list[str]) -> Steps[None]:
        """Read a string literal; its brackets and commas mean nothing."""
        reader = self._reader
        quote = yield from reader.peek()
        triple = yield from reader.literal(quote * 3)
        source.append(triple or reader.take())
        while True:
            yield from reader.run(_IN_STRING[quote], source.append)
            end = yield from reader.literal(quote * 3 if triple else quote)
            if end is not None:
                source.append(end)
                return
            if not (yield from reader.peek()):
                return
            source.append(reader.take())  # a backslash, or a quote within triple quotes
            if source[-1] == "\\" and (yield from reader.peek()):
                source.append(reader.take())

    def _write(self, source: str) -> None:
        if not source.strip():
            return
        named = _ARGUMENT.match(source)
        if named is not None:
            name, value = named[1], source[named.end() :]
        else:
            name = self._declared[self._count] if self._count < len(self._declared) else f"argument_{self._count + 1}"
            value = source
        self._output.arguments(
            f"{', ' if self._count else '{'}{json.dumps(name, ensure_ascii=False)}: {json_of_literal(value)}"
        )
        self._count += 1
