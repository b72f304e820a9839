"""Calls written as JSON between markers: what most formats are."""

from __future__ import annotations

from typing import ClassVar

from cvllm_jax.openai.tool_parsers.argument_types import ArgumentTypes
from cvllm_jax.openai.tool_parsers.json_calls import Outcome, json_calls
from cvllm_jax.openai.tool_parsers.output import Output
from cvllm_jax.openai.tool_parsers.parser import ToolParser
from cvllm_jax.openai.tool_parsers.reader import Steps, TextReader, discard

__all__ = ["TaggedJsonParser"]


class TaggedJsonParser(ToolParser):
    """Calls as JSON after a marker."""

    tags: ClassVar[tuple[tuple[str, str], ...]]
    """Each opening marker with its closing one, which may be empty."""

    def read(self, reader: TextReader, output: Output, types: ArgumentTypes) -> Steps[None]:
        closings = dict(self.tags)
        while (opening := (yield from reader.until(tuple(closings), output.content))) is not None:
            reader.hold()
            reader.take(len(opening))
            outcome = yield from json_calls(reader, output)
            closing = closings[opening]
            if outcome is Outcome.BROKEN and closing:
                # What stands in the tag after a malformed call is the rest of that call.
                if (yield from reader.until((closing, opening), discard, cut=discard)) is not None:
                    output.finish_call()
                reader.hold()
            if outcome is not Outcome.TEXT and closing and (yield from _close(reader, closing)):
                continue
            output.content(reader.release())


def _close(reader: TextReader, closing: str) -> Steps[bool]:
    """Read the closing marker, with brackets before it that close nothing; False if it is not what comes next."""
    while True:
        yield from reader.spaces()
        if (yield from reader.literal("}", "]")) is None:
            return (yield from reader.literal(closing, cut=True)) is not None
