"""Mistral: a marker, then a JSON list, or a name and its arguments."""

from __future__ import annotations

import re
import secrets
import string

from cvllm_jax.openai.tool_parsers.argument_types import ArgumentTypes
from cvllm_jax.openai.tool_parsers.call_form import CallForm, JsonCalls, NamedCalls
from cvllm_jax.openai.tool_parsers.json_calls import json_calls
from cvllm_jax.openai.tool_parsers.json_scanner import json_value
from cvllm_jax.openai.tool_parsers.output import Output
from cvllm_jax.openai.tool_parsers.parser import ToolParser
from cvllm_jax.openai.tool_parsers.reader import Steps, TextReader, discard

__all__ = ["MistralParser"]

_MARKER, _CALL_ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME = re.compile(r"[^\s\[\]{}<>\"]*")


class MistralParser(ToolParser):
    """Both forms of the calls of Mistral's models, told apart by what follows the marker.

    Up to tokenizer 7: ``[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}, "id": "..."}, ...]``. From tokenizer 11
    on: ``[TOOL_CALLS]f[ARGS]{"x": 1}`` with the marker before each call, in some models with ``[CALL_ID]...`` before
    the arguments. Ids that the model writes come too late or not at all, so they are not used.

    Source: mistral-common's tokenizers, the chat template of mistralai/Mistral-Small-3.1-24B-Instruct-2503.
    """

    name = "mistral"
    markers = (_MARKER, _CALL_ID, _ARGUMENTS)

    def call_form(self, chat_template: str) -> CallForm:
        if _ARGUMENTS in chat_template:
            return NamedCalls(begin=_MARKER, between=_ARGUMENTS, end="")
        return JsonCalls(
            opening=f"{_MARKER} [", begin="", separator=", ", end="", closing="]", trigger=_MARKER
        )

    @staticmethod
    def new_id() -> str:
        """Nine letters and digits: Mistral's chat templates refuse any other id when it comes back."""
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))

    def read(self, reader: TextReader, output: Output, types: ArgumentTypes) -> Steps[None]:
        while (yield from reader.until((_MARKER,), output.content)) is not None:
            reader.hold()
            reader.take(len(_MARKER))
            yield from reader.spaces()
            if (yield from reader.peek()) in ("[", "{"):
                yield from json_calls(reader, output)
            else:
                yield from self._named_call(reader, output)
            output.content(reader.release())

    def _named_call(self, reader: TextReader, output: Output) -> Steps[None]:
        name: list[str] = []
        yield from reader.run(_NAME, name.append)
        yield from reader.spaces()
        separator = yield from reader.literal(_ARGUMENTS, _CALL_ID)
        has_brace = separator is None and (yield from reader.peek()) == "{"
        if not name or not (separator or has_brace):
            return
        reader.release()
        output.start("".join(name))
        if separator == _CALL_ID and (yield from reader.until((_ARGUMENTS, "{", _MARKER), discard, cut=discard)):
            yield from reader.literal(_ARGUMENTS)
        yield from reader.spaces()
        following = yield from reader.peek()
        whole = following == "{" and (yield from json_value(reader, output.arguments))
        if whole or following not in ("", "{"):
            output.finish_call()
