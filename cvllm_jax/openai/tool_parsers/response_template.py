"""Any format that a checkpoint describes itself: the ``response_template`` in ``tokenizer_config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cvllm_jax.grammar import GrammarError
from cvllm_jax.openai.tool_parsers.argument_types import ArgumentTypes
from cvllm_jax.openai.tool_parsers.call_form import CallForm
from cvllm_jax.openai.tool_parsers.output import Output
from cvllm_jax.openai.tool_parsers.parser import ParserStream, ToolParser
from cvllm_jax.openai.tool_parsers.reader import Sink, Steps, TextReader, discard
from cvllm_jax.openai.tool_parsers.response_calls import CallRegion, call_region
from cvllm_jax.openai.tool_parsers.response_fields import ResponseField, ResponseTemplate
from cvllm_jax.openai.tool_parsers.response_form import response_form, written
from cvllm_jax.openai.tool_parsers.response_regions import RegionReader

__all__ = ["ResponseTemplateParser"]

_REASONING_FIELDS = ("thinking", "reasoning", "reasoning_content")


class ResponseTemplateParser(ToolParser):
    """Follows a ``response_template``: ``content`` is content, ``thinking`` is reasoning, ``tool_calls`` are calls.

    Other fields, and text in no field, are left out, as the template asks. Three things differ from transformers,
    because a stream takes nothing back and no text raises: a text field that matches again goes on, whether or not it
    ``repeats``; a region that should be a call and is none is content; ``optional`` is not looked at.

    Source: huggingface.co/docs/transformers/main/chat_response_parsing
    """

    name = "response_template"
    handles_reasoning = True

    def __init__(self, template: Mapping[str, Any], *, make_id: Callable[[], str] | None = None) -> None:
        """Raises ModelLoadError for a template that is malformed or needs what is not supported."""
        super().__init__(make_id=make_id)
        self._template = ResponseTemplate.from_dict(template)

    def call_form(self, chat_template: str) -> CallForm:
        return response_form(self._template)

    @property
    def reasoning_marks(self) -> tuple[str, str] | None:
        for field in self._template.fields:
            if field.name in _REASONING_FIELDS and field.opening is not None:
                opening, closing = written(field.opening), written(field.closing) if field.closing else None
                if opening.groups or closing is None or closing.groups or not (opening.first and closing.first):
                    raise GrammarError("its response_template marks reasoning in no single way")
                return opening.texts[0], closing.texts[0]
        return None

    def stream(self, tools: Sequence[Any] = (), *, prompt: str = "") -> ParserStream:
        stream = super().stream(tools)
        stream.feed(self._template.start.after_last(prompt))  # only to know which region the answer begins in
        return stream

    def read(self, reader: TextReader, output: Output, types: ArgumentTypes) -> Steps[None]:
        template = self._template
        regions = RegionReader(reader)
        texts = {field.name: _text(field, output) for field in template.fields}
        content = texts["content"].write if "content" in texts else output.content
        openings = [field for field in template.fields if field.opening is not None]
        implicit = template.implicit
        anchors = [field.opening for field in openings if field.opening is not None]
        if implicit is not None and implicit.closing is not None:
            anchors.append(implicit.closing)
        while True:
            outside = texts[implicit.name] if implicit is not None else _Text(discard, strips=False, join=None)
            outside.begin()
            opened = yield from regions.until(anchors, outside.write)
            if opened is None:
                return
            if opened.anchor == len(openings):
                continue
            field = openings[opened.anchor]
            region: _Text | CallRegion = texts[field.name]
            if field.name == "tool_calls":
                region = call_region(field, output, types, opened, content)
            else:
                texts[field.name].begin()
            closed = yield from regions.until([field.closing] if field.closing is not None else [], region.write)
            if isinstance(region, CallRegion):
                region.close(closed)
            if closed is None:
                return


def _text(field: ResponseField, output: Output) -> _Text:
    sink: Sink = discard
    if field.name == "content":
        sink = output.content
    elif field.name in _REASONING_FIELDS:
        sink = output.reasoning
    return _Text(sink, strips=field.strips, join=field.join)


class _Text:
    """Passes the text of a field on, without the whitespace at both ends if the field ``strips``."""

    def __init__(self, sink: Sink, *, strips: bool, join: str | None) -> None:
        self._sink = sink
        self._strips = strips
        self._join = join
        self._has_text = False
        self._begins = True
        self._space: list[str] = []

    def begin(self) -> None:
        """Another region of this field."""
        if self._join is not None:
            self._begins = True
            self._space = []

    def write(self, text: str) -> None:
        if self._begins and self._strips:
            text = text.lstrip()
        if not text:
            return
        if self._begins and self._has_text and self._join:
            self._sink(self._join)
        self._begins, self._has_text = False, True
        body = text.rstrip() if self._strips else text
        if body:
            self._sink("".join(self._space) + body)
            self._space = []
        if len(body) < len(text):
            self._space.append(text[len(body) :])
