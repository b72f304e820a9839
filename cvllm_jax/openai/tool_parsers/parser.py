"""What all tool parsers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from cvllm_jax.openai.tool_parsers.argument_types import ArgumentTypes
from cvllm_jax.openai.tool_parsers.call_form import CallForm
from cvllm_jax.openai.tool_parsers.events import Event, ParsedToolCall, fold
from cvllm_jax.openai.tool_parsers.output import Output, tool_call_id
from cvllm_jax.openai.tool_parsers.reader import Steps, TextReader

__all__ = ["ParserStream", "ToolParser"]


class ParserStream:
    """One answer being parsed while it arrives."""

    def __init__(self, reader: TextReader, output: Output, steps: Steps[None]) -> None:
        self._reader = reader
        self._output = output
        self._steps: Steps[None] | None = steps

    @property
    def calls_ended(self) -> int:
        """Calls that are complete so far, as nothing else tells until what follows them comes."""
        return self._output.calls_ended

    def feed(self, delta: str) -> list[Event]:
        """What ``delta`` makes certain. Raises ValueError after :meth:`finish`."""
        if self._steps is None:
            raise ValueError("the stream has finished; it takes no more text")
        self._reader.feed(delta)
        next(self._steps)
        return self._output.drain()

    def finish(self) -> list[Event]:
        """What is certain now that no text follows. Nothing the second time."""
        if self._steps is None:
            return []
        self._reader.end()
        # At the end of the text nothing waits any more, so this runs to the generator's end.
        next(self._steps, None)
        self._steps = None
        self._output.finish()
        return self._output.drain()


class ToolParser(ABC):
    """Finds the tool calls in a model's text.

    Until a call's name is complete nothing of it is reported, and text that does not become a call is content.
    From then on it stays a call, its arguments as they were written, also where the text is cut or malformed. A
    name is reported whether or not it is one of the tools: what to do with an unknown one is the caller's
    decision. No text makes a parser raise.
    """

    name: ClassVar[str]
    handles_reasoning: ClassVar[bool] = False
    """Whether reasoning is reported too, because the format marks it the same way as calls."""
    markers: ClassVar[tuple[str, ...] | None] = None
    """What the format is told by. In some vocabularies these are control tokens, which text must keep then. None: any
    control token may be one."""

    def __init__(self, *, make_id: Callable[[], str] | None = None) -> None:
        self._make_id = make_id or self.new_id

    @staticmethod
    def new_id() -> str:
        """An id for a call, of the form that the model's chat template takes back."""
        return tool_call_id()

    @property
    def reasoning_marks(self) -> tuple[str, str] | None:
        """What stands around reasoning, for formats that mark it the same way as calls.

        Raises:
            GrammarError: it cannot be written in one way.
        """
        return None

    @abstractmethod
    def call_form(self, chat_template: str) -> CallForm:
        """How calls are written by a model with this chat template, for grammars.

        Raises:
            GrammarError: the format does not say how.
        """

    def parse(self, text: str, tools: Sequence[Any] = ()) -> tuple[str | None, list[ParsedToolCall]]:
        """The content and the calls of a whole answer; content is None where there are calls and nothing else."""
        stream = self.stream(tools)
        message = fold([*stream.feed(text), *stream.finish()])
        return message.content, list(message.tool_calls)

    def stream(self, tools: Sequence[Any] = (), *, prompt: str = "") -> ParserStream:
        """A parser of one answer as it arrives.

        ``tools`` are OpenAI's tool objects, as dicts or models. ``prompt`` is the rendered prompt, or its end: a few
        formats need to know what of the answer it has begun already.
        """
        reader, output = TextReader(), Output(self._make_id)
        steps = self.read(reader, output, ArgumentTypes(tools))
        stream = ParserStream(reader, output, steps)
        next(steps)  # up to where it waits for the first text
        return stream

    @abstractmethod
    def read(self, reader: TextReader, output: Output, types: ArgumentTypes) -> Steps[None]:
        """Read the whole answer. ``types`` knows the tools' arguments."""
