"""Reasoning in a model's text, and both reasoning and tool calls of one answer."""

from cvllm_jax.openai.reasoning.registry import (
    REASONING_PARSERS,
    ReasoningParser,
    detect_reasoning_parser,
    get_reasoning_parser,
)
from cvllm_jax.openai.reasoning.stacked import MessageStream, message_stream

__all__ = [
    "REASONING_PARSERS",
    "MessageStream",
    "ReasoningParser",
    "detect_reasoning_parser",
    "get_reasoning_parser",
    "message_stream",
]
