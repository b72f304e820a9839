"""gpt-oss: OpenAI's harmony format, messages on channels."""

from __future__ import annotations

import re
from collections.abc import Callable

from cvllm_jax.openai.tool_parsers.argument_types import ArgumentTypes
from cvllm_jax.openai.tool_parsers.call_form import CallForm, NamedCalls
from cvllm_jax.openai.tool_parsers.output import Output
from cvllm_jax.openai.tool_parsers.parser import ToolParser
from cvllm_jax.openai.tool_parsers.reader import Sink, Steps, TextReader, discard

__all__ = ["GptOssParser"]

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_END, _RETURN, _CALL = "<|end|>", "<|return|>", "<|call|>"
_WORD = re.compile(r"[^\s<]*")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)(?=[\s<])")
# possessive throughout, so that no text makes it slow
_CUT_HEADER = re.compile(
    r"\s*+(?:<\|start\|>\w*+)?+(?:\s*+to=[^\s<]*+)?+(?:<\|channel\|>\s*+\w*+)?+(?:\s*+to=[^\s<]*+)?+\s*+"
    r"(?:<\|constrain\|>)?+\w*+(?:<\|?\w*\|?)?+"
)
_NAMESPACE = "functions."


class GptOssParser(ToolParser):
    r"""``<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>`` beside other channels.

    A message to a recipient is a call, named without the ``functions.`` namespace; the recipient may stand before the
    channel or after it. Other messages on the analysis channel are reasoning, all others are content, one on a line.
    A header that is cut before its recipient is complete says nothing and is dropped; text that is no message, such as
    an answer without any markup, is content.

    Source: "OpenAI harmony response format", github.com/openai/harmony, docs/format.md.
    """

    name = "gpt_oss"
    handles_reasoning = True

    def __init__(self, *, make_id: Callable[[], str] | None = None, reports_calls: bool = True) -> None:
        """Without ``reports_calls`` the arguments of a call are content like any other message."""
        super().__init__(make_id=make_id)
        self._reports_calls = reports_calls

    def call_form(self, chat_template: str) -> CallForm:
        # A message holds one call, and the token that closes it ends the answer: the model makes the next call when it
        # has seen the first one's result. So there is one, and a grammar has that token after it in any case.
        begin = f"{_CHANNEL}commentary to={_NAMESPACE}"
        return NamedCalls(begin=begin, between=f" <|constrain|>json{_MESSAGE}", end="", parallel=False)

    def read(self, reader: TextReader, output: Output, types: ArgumentTypes) -> Steps[None]:
        content, reasoning = _Lines(output.content), _Lines(output.reasoning)
        reader.hold()
        # The prompt ends with the role, so the text may begin with the rest of that header.
        yield from reader.spaces()
        if (yield from reader.literal("to=")) is not None:
            yield from reader.run(_WORD, discard)
            yield from reader.spaces()
        while True:
            is_message = yield from self._header(reader)
            header = reader.release()
            recipient = _recipient(header) if self._reports_calls else ""
            if is_message and recipient:
                output.start(recipient)
                if (yield from self._body(reader, output.arguments)):
                    output.finish_call()
            elif is_message:
                channel = _CHANNEL_NAME.search(header)
                lines = reasoning if channel is not None and channel[1] == "analysis" else content
                lines.begin()
                yield from self._body(reader, lines.write)
            elif (yield from reader.peek()) or "<|" not in header or not _CUT_HEADER.fullmatch(header):
                output.content(header)
            elif recipient:
                output.start(recipient)
            if (yield from reader.until((_START, _CHANNEL, _MESSAGE), output.content)) is None:
                return
            reader.hold()

    def _header(self, reader: TextReader) -> Steps[bool]:
        """Read up to and with the beginning of the message; False if the text is no header."""
        marker = yield from reader.literal(_START, _CHANNEL, _MESSAGE)
        if marker is None or marker == _MESSAGE:
            return marker is not None
        yield from reader.until((_MESSAGE, "\n"), discard, cut=discard)
        return (yield from reader.literal(_MESSAGE)) is not None

    def _body(self, reader: TextReader, sink: Sink) -> Steps[bool]:
        """Pass a message on up to its end, which is read; False if the text is cut."""
        end = yield from reader.until((_END, _RETURN, _CALL, _START, _CHANNEL), sink, cut=discard)
        yield from reader.literal(_END, _RETURN, _CALL)
        return end is not None


def _recipient(header: str) -> str:
    """The function that a message calls; empty if it is to nobody."""
    found = _RECIPIENT.search(header)
    name = found[1].removeprefix(_NAMESPACE) if found is not None else ""
    return "" if name in ("assistant", "user", "all") else name


class _Lines:
    """Joins the texts of several messages with newlines."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._has_text = False
        self._separator = ""

    def begin(self) -> None:
        self._separator = "\n" if self._has_text else ""

    def write(self, text: str) -> None:
        self._sink(self._separator + text)
        self._separator = ""
        self._has_text = True
