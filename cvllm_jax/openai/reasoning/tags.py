"""Reasoning between tags at the beginning of an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cvllm_jax.openai.tool_parsers.events import fold
from cvllm_jax.openai.tool_parsers.output import Output
from cvllm_jax.openai.tool_parsers.parser import ParserStream
from cvllm_jax.openai.tool_parsers.reader import Sink, Steps, TextReader, discard

__all__ = ["TaggedReasoning"]

_ANYTHING = re.compile(r".*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TaggedReasoning:
    """``<think>...</think>`` and the like: reasoning first, then the answer.

    Only the beginning of an answer is looked at: tags that come later are the answer's own text. Whitespace inside the
    tags, at both ends, and after them is markup. Without reasoning the text is unchanged; where it ends inside the
    tags, all of it is reasoning.
    """

    name: str
    opening: str
    closing: str

    def starts_inside(self, prompt: str) -> bool:
        """Whether the rendered ``prompt`` ends with the opening tag, as some chat templates make it."""
        return prompt.rstrip().endswith(self.opening.rstrip())

    def parse(self, text: str, *, starts_inside: bool = False) -> tuple[str | None, str | None]:
        """Reasoning and content of a whole answer; each is None where there is none, and "" is content without any."""
        stream = self.stream(starts_inside=starts_inside)
        message = fold([*stream.feed(text), *stream.finish()])
        return message.reasoning, message.content

    def stream(self, *, starts_inside: bool = False) -> ParserStream:
        """A parser of one answer as it arrives."""
        reader, output = TextReader(), Output()
        steps = self._read(reader, output, starts_inside)
        stream = ParserStream(reader, output, steps)
        next(steps)
        return stream

    def _read(self, reader: TextReader, output: Output, starts_inside: bool) -> Steps[None]:
        reader.hold()
        yield from reader.spaces()
        opened = (yield from reader.literal(self.opening)) is not None
        before = reader.release()
        if opened or starts_inside:
            yield from reader.spaces()
            yield from reader.until((self.closing,), _Trimmed(output.reasoning).write, cut=discard)
            yield from reader.literal(self.closing)
            yield from reader.spaces()
        else:
            output.content(before)
        yield from reader.run(_ANYTHING, output.content)


class _Trimmed:
    """Passes text on without the whitespace at its end."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._space: list[str] = []

    def write(self, text: str) -> None:
        body = text.rstrip()
        if body:
            self._sink("".join(self._space) + body)
            self._space = []
        self._space.append(text[len(body) :])
