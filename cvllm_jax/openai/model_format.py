"""The markup that a model writes its tool calls and its reasoning in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cvllm_jax.errors import TokenizationError
from cvllm_jax.openai.reasoning import MessageStream, ReasoningParser, get_reasoning_parser, message_stream
from cvllm_jax.openai.reasoning.tags import TaggedReasoning
from cvllm_jax.openai.tool_parsers import ToolParser, detect_tool_parser, get_tool_parser
from cvllm_jax.openai.tool_parsers.call_form import CallForm

if TYPE_CHECKING:
    from cvllm_jax.engine.engine import InferenceEngine

__all__ = ["ModelFormat"]

_PROBE = "cvllm_jax_probe"


class ModelFormat:
    """Which parsers an engine's model needs, by its chat template or by name.

    Arguments:
        tool_parser, reasoning_parser: a parser's name, "auto", or "none" to leave the text as it is.

    Raises:
        ConfigError: there is no parser of that name.
        ModelLoadError: the checkpoint's ``response_template`` cannot be followed.
    """

    def __init__(self, engine: InferenceEngine, tool_parser: str = "auto", reasoning_parser: str = "auto") -> None:
        self._template = engine.chat_template
        self._tokenizer = engine.tokenizer
        self.source = self._template.source if self._template is not None else ""
        if self._template is not None and self._template.tool_use_source is not None:
            self.source += self._template.tool_use_source
        self.tool_parser: ToolParser | None = None
        self.reasoning_parser: ReasoningParser | None = None
        architecture = engine.model_info().architecture
        self._end_tokens = engine.model_info().eos_token_ids
        answers = self._template.response_template if self._template is not None else None
        found = tool_parser
        if tool_parser == "auto":
            found = detect_tool_parser(self.source, architecture) or ("response_template" if answers else "none")
        if found != "none":
            self.tool_parser = get_tool_parser(found, response_template=answers)
        if reasoning_parser != "none":
            self.reasoning_parser = get_reasoning_parser(reasoning_parser, chat_template=self.source)

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the chat template shows tools to the model."""
        if self._template is None:
            return False
        tool = {"type": "function", "function": {"name": _PROBE, "description": "", "parameters": {}}}
        try:
            return _PROBE in self._template.render([{"role": "user", "content": "hi"}], [tool])
        except TokenizationError:  # it has demands of its own on messages or tools
            return "tools" in self.source

    @property
    def may_reason(self) -> bool:
        """Whether answers are looked at for reasoning."""
        return self.reasoning_parser is not None or (
            self.tool_parser is not None and self.tool_parser.handles_reasoning
        )

    @property
    def writes_channels(self) -> bool:
        """Whether answers are messages on channels, as of gpt-oss."""
        parsers = (self.tool_parser, self.reasoning_parser)
        return any(parser is not None and parser.name == "gpt_oss" for parser in parsers)

    @property
    def control_tokens(self) -> dict[str, int]:
        """Ids by their text."""
        return {text: token for token, text in self._tokenizer.control_tokens.items()}

    @property
    def call_form(self) -> CallForm:
        """How a grammar has the calls of a model with a tool parser written.

        Raises:
            GrammarError: the format does not say how.
        """
        assert self.tool_parser is not None
        form = self.tool_parser.call_form(self.source)
        ends = {text for text, token in self.control_tokens.items() if token in self._end_tokens}
        if form.end in ends:  # the answer's end, which is after a grammar in any case
            form = replace(form, end="", parallel=False)
        elif form.closing in ends:
            form = replace(form, closing="")
        return form

    @property
    def thinking_tags(self) -> TaggedReasoning | None:
        """The tags around the model's reasoning, if its reasoning stands in tags."""
        return self.reasoning_parser if isinstance(self.reasoning_parser, TaggedReasoning) else None

    def prompt_end(self, prompt: Sequence[int]) -> str:
        """The last tokens of a prompt as text, in which an answer may have begun."""
        return self._tokenizer.decode(prompt[-64:], skip_special=False)

    def stream(self, prompt_end: str, tools: Sequence[Any] | None) -> MessageStream:
        """A parser of one answer; without ``tools`` it finds no calls."""
        parser = self.tool_parser if tools else None
        return message_stream(self.reasoning_parser, parser, prompt=prompt_end, tools=tools or ())

    def needs_control_tokens(self, *, tools: bool) -> bool:
        """Whether some of the markup is made of control tokens, so that the answer's text must keep them."""
        markers: list[str] = []
        if tools and self.tool_parser is not None:
            if self.tool_parser.markers is None:
                return True
            markers += self.tool_parser.markers
        if (tags := self.thinking_tags) is not None:
            markers += (tags.opening, tags.closing)
        elif self.reasoning_parser is not None:
            return True
        return any(name in marker for name in self._tokenizer.control_tokens.values() for marker in markers)
