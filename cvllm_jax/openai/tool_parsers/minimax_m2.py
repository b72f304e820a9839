"""MiniMax-M2: one block of calls in tags, with a tag for each argument."""

from __future__ import annotations

import json
import re

from cvllm_jax.openai.tool_parsers.argument_types import ArgumentTypes, json_of
from cvllm_jax.openai.tool_parsers.call_form import CallForm, TaggedCalls
from cvllm_jax.openai.tool_parsers.notations import json_without
from cvllm_jax.openai.tool_parsers.output import Output
from cvllm_jax.openai.tool_parsers.parser import ToolParser
from cvllm_jax.openai.tool_parsers.reader import Steps, TextReader, discard

__all__ = ["MinimaxM2Parser"]

_CALLS, _CALLS_END = "<minimax:tool_call>", "</minimax:tool_call>"
_CALL, _CALL_END = '<invoke name="', "</invoke>"
_ARGUMENT, _ARGUMENT_END = '<parameter name="', "</parameter>"
_NAME = re.compile(r'[^\s<>"]*')


class MinimaxM2Parser(ToolParser):
    r"""``<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">1</parameter>\n</invoke>\n</minimax:tool_call>``.

    Values are plain text. They become what the tool's schema says: the first of the declared types that fits, else a
    string, and an argument without a declared type is a string. A value that can only be a string is passed on while
    it arrives, others when they are complete.

    Source: the chat template of MiniMaxAI/MiniMax-M2.
    """

    name = "minimax_m2"
    markers = (_CALLS, _CALLS_END)

    def call_form(self, chat_template: str) -> CallForm:
        return TaggedCalls(
            opening=f"{_CALLS}\n",
            begin=_CALL,
            between='">\n',
            before=_ARGUMENT,
            after='">',
            close=f"{_ARGUMENT_END}\n",
            end=f"{_CALL_END}\n",  # with the newline, because no separator may begin as what closes the block does
            closing=_CALLS_END,
            trigger=_CALLS,
            notation=json_without((_ARGUMENT_END,)),
            argument_names=r'[^\s<>"]+',
        )

    def read(self, reader: TextReader, output: Output, types: ArgumentTypes) -> Steps[None]:
        while (yield from reader.until((_CALLS,), output.content)) is not None:
            reader.hold()
            yield from reader.literal(_CALLS)
            yield from reader.spaces()
            while (yield from _call(reader, output, types)):
                if (yield from _at_end(reader)):
                    break
            else:
                output.content(reader.release())


def _call(reader: TextReader, output: Output, types: ArgumentTypes) -> Steps[bool]:
    """Read one call; False, and what was read is still held, where there is none."""
    name: list[str] = []
    if (yield from reader.literal(_CALL)) is None:
        return False
    yield from reader.run(_NAME, name.append)
    if not name or (yield from reader.literal('">')) is None:
        return False
    reader.release()
    function, opened = "".join(name), False
    output.start(function)
    while True:
        # Anything else than arguments is no part of a call; it is passed over.
        marker = yield from reader.until((_ARGUMENT, _CALL_END, _CALLS_END), discard)
        if marker is None:
            return True
        if marker != _ARGUMENT:
            break
        reader.take(len(marker))
        key: list[str] = []
        yield from reader.run(_NAME, key.append)
        if (yield from reader.literal('">')) is not None:
            output.arguments((", " if opened else "{") + json.dumps("".join(key), ensure_ascii=False) + ": ")
            opened = True
            if not (yield from _value(reader, output, types.of(function, "".join(key)))):
                return True
    if opened:
        output.arguments("}")
    output.finish_call()
    if marker == _CALL_END:
        reader.take(len(marker))
    return True


def _at_end(reader: TextReader) -> Steps[bool]:
    """Whether the block ends here; its end is read. Otherwise what follows is held."""
    yield from reader.spaces()
    if (yield from reader.literal(_CALLS_END, cut=True)) is not None:
        return True
    reader.hold()
    return False


def _value(reader: TextReader, output: Output, types: tuple[str, ...]) -> Steps[bool]:
    """Read one value; False where the answer breaks off."""
    if set(types) <= {"string"}:
        output.arguments('"')
        end = yield from reader.until(
            (_ARGUMENT_END,), lambda text: output.arguments(json.dumps(text, ensure_ascii=False)[1:-1]), cut=discard
        )
        if end is not None:
            output.arguments('"')
    else:
        text: list[str] = []
        end = yield from reader.until((_ARGUMENT_END,), text.append, cut=discard)
        if end is not None:
            output.arguments(json_of("".join(text), types))
    yield from reader.literal(_ARGUMENT_END)
    return end is not None
