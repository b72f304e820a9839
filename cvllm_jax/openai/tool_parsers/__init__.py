"""Tool calls in a model's text: one parser a format, all of them incremental.

A whole answer and a stream are parsed by the same code: :meth:`ToolParser.parse` adds up what
:meth:`ToolParser.stream` reports.
"""

from cvllm_jax.openai.tool_parsers.events import (
    ContentDelta,
    Event,
    ParsedMessage,
    ParsedToolCall,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
    fold,
)
from cvllm_jax.openai.tool_parsers.parser import ParserStream, ToolParser
from cvllm_jax.openai.tool_parsers.registry import TOOL_PARSERS, detect_tool_parser, get_tool_parser
from cvllm_jax.openai.tool_parsers.response_template import ResponseTemplateParser

__all__ = [
    "TOOL_PARSERS",
    "ContentDelta",
    "Event",
    "ParsedMessage",
    "ParsedToolCall",
    "ParserStream",
    "ReasoningDelta",
    "ResponseTemplateParser",
    "ToolCallArguments",
    "ToolCallStart",
    "ToolParser",
    "detect_tool_parser",
    "fold",
    "get_tool_parser",
]
