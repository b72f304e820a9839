"""Qwen3-Coder and Qwen 3.5: calls in tags, one for each argument."""

from __future__ import annotations

import json
import re

from cvllm_jax.grammar.patterns import literal
from cvllm_jax.openai.tool_parsers.argument_types import ArgumentTypes, json_of
from cvllm_jax.openai.tool_parsers.call_form import CallForm, TaggedCalls
from cvllm_jax.openai.tool_parsers.notations import json_without
from cvllm_jax.openai.tool_parsers.output import Output
from cvllm_jax.openai.tool_parsers.parser import ToolParser
from cvllm_jax.openai.tool_parsers.reader import Steps, TextReader, discard

__all__ = ["Qwen3CoderParser"]

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_VALUE_ENDS = (_PARAMETER_END, _PARAMETER, _FUNCTION_END, _CALL_END)
_NAME = re.compile(r"[^\s<>]*")


class Qwen3CoderParser(ToolParser):
    r"""``<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>``.

    Values are plain text. They become what the tool's schema says: the first of the declared types that fits, else a
    string, and an argument without a declared type is a string. A value that can only be a string is passed on while
    it arrives, others when they are complete. The newline after the opening tag and the one before the closing tag are
    markup.

    Source: the chat template of Qwen/Qwen3-Coder-30B-A3B-Instruct.
    """

    name = "qwen3_coder"
    markers = (_CALL, _CALL_END)

    def call_form(self, chat_template: str) -> CallForm:
        return TaggedCalls(
            begin=f"{_CALL}\n{_FUNCTION}",
            between=">\n",
            before=_PARAMETER,
            after=">\n",
            close=f"\n{_PARAMETER_END}\n",
            end=f"{_FUNCTION_END}\n{_CALL_END}",
            separator="\n",
            trigger=_CALL,
            not_in_text=(literal(_FUNCTION),),
            notation=json_without(_VALUE_ENDS),
        )

    def read(self, reader: TextReader, output: Output, types: ArgumentTypes) -> Steps[None]:
        while (yield from reader.until((_CALL, _FUNCTION), output.content)) is not None:
            reader.hold()
            yield from reader.literal(_CALL)
            yield from reader.spaces()
            name: list[str] = []
            if (yield from reader.literal(_FUNCTION)) is not None:
                yield from reader.run(_NAME, name.append)
                if name and (yield from reader.literal(">")) is not None:
                    reader.release()
                    output.start("".join(name))
                    yield from _Arguments(reader, output, types, "".join(name)).read()
                    continue
            output.content(reader.release())


class _Arguments:
    """Reads the arguments of one call and writes them as a JSON object."""

    def __init__(self, reader: TextReader, output: Output, types: ArgumentTypes, function: str) -> None:
        self._reader = reader
        self._output = output
        self._types = types
        self._function = function
        self._opened = False

    def read(self) -> Steps[None]:
        reader = self._reader
        while True:
            # Anything else than arguments is no part of a call; it is passed over.
            marker = yield from reader.until((_PARAMETER, _FUNCTION_END, _CALL_END, _CALL), discard)
            if marker is None:
                return
            if marker == _PARAMETER:
                reader.take(len(marker))
                yield from self._argument()
                continue
            if self._opened:
                self._output.arguments("}")
            self._output.finish_call()
            if marker == _FUNCTION_END:
                reader.take(len(marker))
                yield from reader.spaces()
            if marker != _CALL:
                yield from reader.literal(_CALL_END, cut=True)
            return

    def _argument(self) -> Steps[None]:
        reader, output = self._reader, self._output
        pieces: list[str] = []
        yield from reader.run(_NAME, pieces.append)
        if (yield from reader.literal(">")) is None:
            return
        yield from reader.literal("\n")
        name = "".join(pieces)
        output.arguments((", " if self._opened else "{") + json.dumps(name, ensure_ascii=False) + ": ")
        self._opened = True
        types = self._types.of(self._function, name)
        if set(types) <= {"string"}:
            output.arguments('"')
            value = _StringValue(output)
            end = yield from reader.until(_VALUE_ENDS, value.write, cut=discard)
            if end is not None:
                output.arguments('"')
        else:
            text: list[str] = []
            end = yield from reader.until(_VALUE_ENDS, text.append, cut=discard)
            if end is not None:
                output.arguments(json_of("".join(text).removesuffix("\n"), types))
        yield from reader.literal(_PARAMETER_END)


class _StringValue:
    """Writes text into a JSON string, except for a last newline."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._newline = ""

    def write(self, text: str) -> None:
        text = self._newline + text
        self._newline = "\n" if text.endswith("\n") else ""
        self._output.arguments(json.dumps(text.removesuffix("\n"), ensure_ascii=False)[1:-1])
