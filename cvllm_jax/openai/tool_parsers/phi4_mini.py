"""Phi-4-mini: a JSON list after a marker or in tags."""

from __future__ import annotations

from cvllm_jax.grammar.patterns import literal
from cvllm_jax.openai.tool_parsers.call_form import CallForm, JsonCalls
from cvllm_jax.openai.tool_parsers.tagged_json import TaggedJsonParser

__all__ = ["Phi4MiniParser"]


class Phi4MiniParser(TaggedJsonParser):
    """``functools[{"name": "f", "arguments": {"x": 1}}, ...]``, or the list, or one call, in ``<|tool_call|>`` tags.

    Which one the model writes depends on the template that asks for it. Source: the model card and chat templates of
    microsoft/Phi-4-mini-instruct.
    """

    name = "phi4_mini"
    tags = (("functools", ""), ("<|tool_call|>", "<|/tool_call|>"))
    markers = ("functools", "<|tool_call|>", "<|/tool_call|>")

    def call_form(self, chat_template: str) -> CallForm:
        (opening, closing), (other, _) = self.tags if "functools" in chat_template else reversed(self.tags)
        return JsonCalls(
            opening=f"{opening}[",
            begin="",
            separator=", ",
            end="",
            closing=f"]{closing}",
            trigger=opening,
            not_in_text=(literal(other),),
        )
