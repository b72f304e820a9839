"""Granite 3: a JSON list after a marker."""

from __future__ import annotations

from cvllm_jax.grammar.patterns import literal
from cvllm_jax.openai.tool_parsers.call_form import CallForm, JsonCalls
from cvllm_jax.openai.tool_parsers.tagged_json import TaggedJsonParser

__all__ = ["GraniteParser"]


class GraniteParser(TaggedJsonParser):
    """``<|tool_call|>[{"name": "f", "arguments": {"x": 1}}, ...]``; also in the tags of Granite 4.

    Source: the chat template of ibm-granite/granite-3.3-8b-instruct.
    """

    name = "granite"
    tags = (("<|tool_call|>", ""), ("<tool_call>", "</tool_call>"))
    markers = ("<|tool_call|>", "<tool_call>", "</tool_call>")

    def call_form(self, chat_template: str) -> CallForm:
        return JsonCalls(
            opening="<|tool_call|>[",
            begin="",
            separator=", ",
            end="",
            closing="]",
            trigger="<|tool_call|>",
            not_in_text=(literal("<tool_call>"),),
        )
