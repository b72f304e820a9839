"""Constrained decoding: JSON Schema, regular expressions and grammars to masks over the vocabulary."""

from cvllm_jax.grammar.errors import GrammarError
from cvllm_jax.grammar.spec import (
    AfterText,
    Grammar,
    JsonObjectGrammar,
    JsonSchemaGrammar,
    LarkGrammar,
    RegexGrammar,
    TextGrammar,
    ToolCallGrammar,
    tool_call_grammar,
)

__all__ = [
    "AfterText",
    "Grammar",
    "GrammarError",
    "JsonObjectGrammar",
    "JsonSchemaGrammar",
    "LarkGrammar",
    "RegexGrammar",
    "TextGrammar",
    "ToolCallGrammar",
    "tool_call_grammar",
]
