"""Which reasoning parser a model needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from cvllm_jax.errors import ConfigError
from cvllm_jax.openai.reasoning.channels import ChannelReasoning
from cvllm_jax.openai.reasoning.tags import TaggedReasoning
from cvllm_jax.openai.tool_parsers.parser import ParserStream

__all__ = ["REASONING_PARSERS", "ReasoningParser", "detect_reasoning_parser", "get_reasoning_parser"]


class ReasoningParser(Protocol):
    """Splits an answer into reasoning and content."""

    @property
    def name(self) -> str: ...

    def starts_inside(self, prompt: str) -> bool: ...

    def parse(self, text: str, *, starts_inside: bool = False) -> tuple[str | None, str | None]: ...

    def stream(self, *, starts_inside: bool = False) -> ParserStream: ...


REASONING_PARSERS: Mapping[str, ReasoningParser] = {
    parser.name: parser
    for parser in (
        ChannelReasoning(),
        TaggedReasoning("think", "<think>", "</think>"),
        TaggedReasoning("mistral", "[THINK]", "[/THINK]"),
        TaggedReasoning("seed_oss", "<seed:think>", "</seed:think>"),
        TaggedReasoning("cohere", "<|START_THINKING|>", "<|END_THINKING|>"),
        TaggedReasoning("gemma4", "<|channel>thought\n", "<channel|>"),
        TaggedReasoning("reasoning", "<reasoning>", "</reasoning>"),
        TaggedReasoning("thought", "<thought>", "</thought>"),
    )
}
"""The parsers by name. DeepSeek R1, Qwen 3, QwQ, SmolLM3, GLM, MiniMax and most others are ``think``."""

_ALIASES = {"deepseek_r1": "think", "qwen3": "think", "openai_gptoss": "gpt_oss", "harmony": "gpt_oss"}


def get_reasoning_parser(name: str = "auto", *, chat_template: str | None = None) -> ReasoningParser | None:
    """The reasoning parser called ``name``; with ``"auto"`` what :func:`detect_reasoning_parser` finds, or None.

    Raises ConfigError for a name that is none.
    """
    if name == "auto":
        detected = detect_reasoning_parser(chat_template)
        return REASONING_PARSERS[detected] if detected is not None else None
    parser = REASONING_PARSERS.get(_ALIASES.get(name, name))
    if parser is None:
        raise ConfigError(
            f"there is no reasoning parser {name!r}; there are auto, {', '.join(REASONING_PARSERS)}",
            param="reasoning_parser",
        )
    return parser


def detect_reasoning_parser(chat_template: str | None) -> str | None:
    """The name of the parser for the markup in a chat template; None for one that knows no reasoning."""
    for name, parser in REASONING_PARSERS.items():
        if isinstance(parser, TaggedReasoning):
            # Written by models that the template asks to, or stripped from earlier turns: the closing tag is there.
            parts: tuple[str, ...] = (parser.closing,)
        else:
            parts = ("<|channel|>", "<|message|>")
        if chat_template and all(part in chat_template for part in parts):
            return name
    return None
