"""Reasoning on gpt-oss's analysis channel."""

from __future__ import annotations

from cvllm_jax.openai.tool_parsers.events import fold
from cvllm_jax.openai.tool_parsers.gpt_oss import GptOssParser
from cvllm_jax.openai.tool_parsers.parser import ParserStream

__all__ = ["ChannelReasoning"]


class ChannelReasoning:
    """Splits gpt-oss's channels where no calls are wanted; with tools, its tool parser does both.

    The model opens every channel itself, so nothing depends on the prompt.
    """

    name = "gpt_oss"

    def starts_inside(self, prompt: str) -> bool:
        """Never."""
        return False

    def parse(self, text: str, *, starts_inside: bool = False) -> tuple[str | None, str | None]:
        """Reasoning and content of a whole answer."""
        stream = self.stream(starts_inside=starts_inside)
        message = fold([*stream.feed(text), *stream.finish()])
        return message.reasoning, message.content

    def stream(self, *, starts_inside: bool = False) -> ParserStream:
        """A parser of one answer as it arrives."""
        return GptOssParser(reports_calls=False).stream()
