"""Llama 3.1, 3.2, 3.3 and 4, and xLAM: JSON objects, with or without a marker."""

from __future__ import annotations

from cvllm_jax.grammar.patterns import literal
from cvllm_jax.openai.tool_parsers.argument_types import ArgumentTypes
from cvllm_jax.openai.tool_parsers.call_form import CallForm, JsonCalls
from cvllm_jax.openai.tool_parsers.json_calls import json_calls
from cvllm_jax.openai.tool_parsers.output import Output
from cvllm_jax.openai.tool_parsers.parser import ToolParser
from cvllm_jax.openai.tool_parsers.reader import Steps, TextReader

__all__ = ["Llama3JsonParser"]

_MARKER = "<|python_tag|>"
# The beginning of an object that has a name, in any spelling: with arguments it is a call wherever it stands.
_NAMED_OBJECT = r"\{(?s:.*)\x22(?:n|\\u006[eE])(?:a|\\u0061)(?:m|\\u006[dD])(?:e|\\u0065)\x22"


class Llama3JsonParser(ToolParser):
    """``{"name": "f", "parameters": {"x": 1}}``, perhaps after ``<|python_tag|>``; several with ``;`` or in a list.

    An object without the marker may as well be the answer: it becomes a call when its arguments begin after its
    name, not with the name alone.

    Source: the chat template of meta-llama/Llama-3.1-8B-Instruct.
    """

    name = "llama3_json"
    markers = (_MARKER,)

    def call_form(self, chat_template: str) -> CallForm:
        return JsonCalls(
            begin="",
            separator="; ",
            end="",
            arguments_key="parameters",
            not_in_text=(literal(_MARKER), _NAMED_OBJECT),
        )

    def read(self, reader: TextReader, output: Output, types: ArgumentTypes) -> Steps[None]:
        while (opening := (yield from reader.until((_MARKER, "{", "["), output.content))) is not None:
            reader.hold()
            if opening == _MARKER:
                reader.take(len(_MARKER))
            yield from json_calls(reader, output, eager=opening == _MARKER)
            output.content(reader.release())
