"""DeepSeek V3, R1 and V3.1: a name and its arguments between special tokens."""

from __future__ import annotations

import re

from cvllm_jax.grammar.patterns import literal
from cvllm_jax.openai.tool_parsers.argument_types import ArgumentTypes
from cvllm_jax.openai.tool_parsers.call_form import CallForm, NamedCalls
from cvllm_jax.openai.tool_parsers.json_scanner import json_value
from cvllm_jax.openai.tool_parsers.output import Output
from cvllm_jax.openai.tool_parsers.parser import ToolParser
from cvllm_jax.openai.tool_parsers.reader import Steps, TextReader, discard

__all__ = ["DeepSeekV3Parser"]

_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_BEGIN, _SEPARATOR, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_NAME = re.compile(r"[^\s<{`]*")


class DeepSeekV3Parser(ToolParser):
    r"""Calls between DeepSeek's full-width tokens, in a frame of ``tool▁calls▁begin`` and ``tool▁calls▁end``.

    V3 and R1 write ``<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"x": 1}\n```<｜tool▁call▁end｜>``, V3.1
    ``<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜>``. What follows the separator tells which it is.

    Source: the chat templates of deepseek-ai/DeepSeek-V3-0324 and deepseek-ai/DeepSeek-V3.1.
    """

    name = "deepseek_v3"
    markers = (_CALLS_BEGIN, _CALLS_END, _BEGIN, _SEPARATOR, _END)

    def call_form(self, chat_template: str) -> CallForm:
        before, between, after, separator = "", _SEPARATOR, _END, ""
        if "```json" in chat_template:
            before, between, after, separator = f"function{_SEPARATOR}", "\n```json\n", f"\n```{_END}", "\n"
        return NamedCalls(
            opening=_CALLS_BEGIN,
            begin=f"{_BEGIN}{before}",
            between=between,
            separator=separator,
            end=after,
            closing=_CALLS_END,
            trigger=_CALLS_BEGIN,
            not_in_text=(literal(_BEGIN),),
        )

    def read(self, reader: TextReader, output: Output, types: ArgumentTypes) -> Steps[None]:
        while (yield from reader.until((_CALLS_BEGIN, _BEGIN), output.content)) is not None:
            reader.hold()
            yield from reader.literal(_CALLS_BEGIN)
            yield from reader.spaces()
            while (yield from reader.literal(_BEGIN)) is not None and (yield from self._call(reader, output)):
                reader.hold()
                yield from reader.spaces()
                if (yield from reader.literal(_CALLS_END, cut=True)) is not None:
                    reader.hold()
                    break
            output.content(reader.release())

    def _call(self, reader: TextReader, output: Output) -> Steps[bool]:
        """Read a call up to and with its end; False if it is none or the text is cut."""
        first: list[str] = []
        second: list[str] = []
        yield from reader.run(_NAME, first.append)
        if (yield from reader.literal(_SEPARATOR)) is None:
            return False
        yield from reader.spaces()
        yield from reader.run(_NAME, second.append)
        following = yield from reader.peek()
        name = "".join(second if second else first)
        if not name or (second and not following) or (not second and not following and name == "function"):
            return False  # cut within the name, or before it
        reader.release()
        output.start(name)
        fenced = yield from reader.until(("{", _END, _BEGIN, _CALLS_END), discard, cut=discard)
        if fenced == "{":
            yield from json_value(reader, output.arguments)
            fenced = yield from reader.until((_END, _BEGIN, _CALLS_END), discard, cut=discard)
        if fenced is None:
            return False
        output.finish_call()
        yield from reader.literal(_END)
        return True
