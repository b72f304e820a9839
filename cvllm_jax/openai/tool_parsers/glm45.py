"""GLM-4.5 to 4.7: calls in tags, with a pair of tags for each argument."""

from __future__ import annotations

import json
import re

from cvllm_jax.openai.tool_parsers.argument_types import ArgumentTypes, json_of
from cvllm_jax.openai.tool_parsers.call_form import CallForm, TaggedCalls
from cvllm_jax.openai.tool_parsers.notations import json_without
from cvllm_jax.openai.tool_parsers.output import Output
from cvllm_jax.openai.tool_parsers.parser import ToolParser
from cvllm_jax.openai.tool_parsers.reader import Steps, TextReader, discard

__all__ = ["Glm45Parser"]

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_KEY, _KEY_END = "<arg_key>", "</arg_key>"
_VALUE, _VALUE_END = "<arg_value>", "</arg_value>"
_NAME = re.compile(r"[^\s<>]*")


class Glm45Parser(ToolParser):
    r"""``<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>``; GLM-4.7 writes no newlines.

    Values are plain text. They become what the tool's schema says: the first of the declared types that fits, else a
    string, and an argument without a declared type is a string. A value that can only be a string is passed on while
    it arrives, others when they are complete.

    Source: the chat templates of zai-org/GLM-4.6 and zai-org/GLM-4.7-Flash.
    """

    name = "glm45"
    markers = (_CALL, _CALL_END, _KEY, _KEY_END, _VALUE, _VALUE_END)

    def call_form(self, chat_template: str) -> CallForm:
        line = "" if f"{_KEY_END}{_VALUE}" in chat_template else "\n"
        return TaggedCalls(
            begin=_CALL,
            between=line,
            before=_KEY,
            after=f"{_KEY_END}{line}{_VALUE}",
            close=_VALUE_END + line,
            end=_CALL_END,
            separator="\n",
            trigger=_CALL,
            notation=json_without((_VALUE_END,)),
        )

    def read(self, reader: TextReader, output: Output, types: ArgumentTypes) -> Steps[None]:
        while (yield from reader.until((_CALL,), output.content)) is not None:
            reader.hold()
            yield from reader.literal(_CALL)
            yield from reader.spaces()
            name: list[str] = []
            yield from reader.run(_NAME, name.append)
            yield from reader.spaces()
            marker = (yield from reader.literal(_KEY, _CALL_END)) if name else None
            if marker is None:
                output.content(reader.release())
                continue
            reader.release()
            output.start("".join(name))
            yield from _arguments(reader, output, types, "".join(name), marker)


def _arguments(reader: TextReader, output: Output, types: ArgumentTypes, function: str, marker: str) -> Steps[None]:
    """Read the arguments of one call, whose first ``marker`` is taken, and write them as a JSON object."""
    opened = False
    while marker == _KEY:
        key: list[str] = []
        if (yield from reader.until((_KEY_END, _CALL_END), key.append, cut=discard)) is None:
            return
        if (yield from reader.literal(_KEY_END)) is not None:
            yield from reader.spaces()
            if (yield from reader.literal(_VALUE)) is not None:
                name = "".join(key).strip()
                output.arguments((", " if opened else "{") + json.dumps(name, ensure_ascii=False) + ": ")
                opened = True
                if not (yield from _value(reader, output, types.of(function, name))):
                    return
        # Anything else than arguments is no part of a call; it is passed over.
        found = yield from reader.until((_KEY, _CALL_END, _CALL), discard)
        if found is None:
            return
        marker = found
        if marker != _CALL:
            reader.take(len(marker))
    if opened:
        output.arguments("}")
    output.finish_call()


def _value(reader: TextReader, output: Output, types: tuple[str, ...]) -> Steps[bool]:
    """Read one value; False where the answer breaks off."""
    if set(types) <= {"string"}:
        output.arguments('"')
        end = yield from reader.until(
            (_VALUE_END,), lambda text: output.arguments(json.dumps(text, ensure_ascii=False)[1:-1]), cut=discard
        )
        if end is not None:
            output.arguments('"')
    else:
        text: list[str] = []
        end = yield from reader.until((_VALUE_END,), text.append, cut=discard)
        if end is not None:
            output.arguments(json_of("".join(text), types))
    yield from reader.literal(_VALUE_END)
    return end is not None
