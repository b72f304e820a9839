"""Hermes 2 and 3, Qwen 2.5, Qwen 3, Granite 4 and many others: JSON in tags."""

from __future__ import annotations

from cvllm_jax.openai.tool_parsers.call_form import CallForm, JsonCalls
from cvllm_jax.openai.tool_parsers.tagged_json import TaggedJsonParser

__all__ = ["HermesParser"]


class HermesParser(TaggedJsonParser):
    """``<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>``, one tag a call.

    Source: the chat templates of NousResearch/Hermes-3-Llama-3.1-8B and Qwen/Qwen3-0.6B.
    """

    name = "hermes"
    tags = (("<tool_call>", "</tool_call>"),)
    markers = ("<tool_call>", "</tool_call>")

    def call_form(self, chat_template: str) -> CallForm:
        return JsonCalls(begin="<tool_call>\n", separator="\n", end="\n</tool_call>")
