"""Output items on their way: one class for each kind, which tells its events in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from cvllm_jax.openai.mcp_types import McpTool
from cvllm_jax.openai.types import TokenLogprob
from cvllm_jax.responses.agent.types import ToolOutcome
from cvllm_jax.responses.items.custom_input import CustomInput
from cvllm_jax.responses.items.opaque import encode_reasoning
from cvllm_jax.responses.items.tool_targets import ClientTarget
from cvllm_jax.responses.types import (
    ContentPartAdded,
    ContentPartDone,
    CustomToolCall,
    CustomToolCallInputDelta,
    CustomToolCallInputDone,
    FunctionCall,
    FunctionCallArgumentsDelta,
    FunctionCallArgumentsDone,
    Item,
    ListedTool,
    McpApprovalRequest,
    McpCall,
    McpCallArgumentsDelta,
    McpCallArgumentsDone,
    McpCallCompleted,
    McpCallFailed,
    McpCallInProgress,
    McpListTools,
    McpListToolsCompleted,
    McpListToolsFailed,
    McpListToolsInProgress,
    MessageItem,
    OutputItemAdded,
    OutputText,
    OutputTextDelta,
    OutputTextDone,
    Reasoning,
    ReasoningSummaryPartAdded,
    ReasoningSummaryPartDone,
    ReasoningSummaryTextDelta,
    ReasoningSummaryTextDone,
    ReasoningText,
    ReasoningTextDelta,
    ReasoningTextDone,
    ResponseEvent,
    SummaryText,
    TextLogprob,
    text_logprob,
)

__all__ = [
    "ApprovalRequestWriter",
    "CustomCallWriter",
    "Emit",
    "End",
    "FunctionCallWriter",
    "ItemWriter",
    "McpCallWriter",
    "McpListWriter",
    "MessageWriter",
    "ReasoningWriter",
]

#: Sends an event of this kind with these fields.
type Emit = Callable[..., None]

#: How the model left an item: it was whole, or cut.
type End = Literal["completed", "incomplete"]


class ItemWriter:
    """An item that was added. ``done`` is its last form, once it is known."""

    def __init__(self, emit: Emit, index: int, item: Item) -> None:
        self._emit_event = emit
        self.index = index
        self.done: Item | None = None
        self._item = item
        emit(OutputItemAdded, output_index=index, item=item)

    def add(self, text: str) -> None:
        """The next piece of what the model writes."""

    def end(self, status: End) -> None:
        """The model has written all of it. Twice is once."""

    def abandon(self) -> None:
        """Nothing more can come."""
        self.end("incomplete")

    def _emit(self, kind: Callable[..., ResponseEvent], **fields: Any) -> None:
        self._emit_event(kind, item_id=self._item.id, output_index=self.index, **fields)


class MessageWriter(ItemWriter):
    def __init__(self, emit: Emit, index: int, item_id: str) -> None:
        super().__init__(emit, index, MessageItem(id=item_id, status="in_progress", role="assistant", content=[]))
        self._text: list[str] = []
        self._logprobs: list[TextLogprob] = []
        self._emit(ContentPartAdded, content_index=0, part=OutputText(text=""))

    def add(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> None:
        entries = [text_logprob(logprob) for logprob in logprobs]
        self._text.append(text)
        self._logprobs += entries
        self._emit(OutputTextDelta, content_index=0, delta=text, logprobs=entries)

    def end(self, status: End) -> None:
        if self.done is None:
            part = OutputText(text="".join(self._text), logprobs=self._logprobs)
            self._emit(OutputTextDone, content_index=0, text=part.text, logprobs=part.logprobs)
            self._emit(ContentPartDone, content_index=0, part=part)
            self.done = self._item.model_copy(update={"status": status, "content": [part]})


class ReasoningWriter(ItemWriter):
    """Reasoning. ``as_text`` chooses the vocabulary; ``opaque`` adds what a client that keeps the items gives back."""

    def __init__(self, emit: Emit, index: int, item_id: str, *, as_text: bool, opaque: bool) -> None:
        item = Reasoning(id=item_id, status="in_progress", summary=[], content=[] if as_text else None)
        super().__init__(emit, index, item)
        self._as_text = as_text
        self._opaque = opaque
        self._text: list[str] = []
        if as_text:
            self._emit(ContentPartAdded, content_index=0, part=ReasoningText(text=""))
        else:
            self._emit(ReasoningSummaryPartAdded, summary_index=0, part=SummaryText(text=""))

    def add(self, text: str) -> None:
        self._text.append(text)
        if self._as_text:
            self._emit(ReasoningTextDelta, content_index=0, delta=text)
        else:
            self._emit(ReasoningSummaryTextDelta, summary_index=0, delta=text)

    def end(self, status: End) -> None:
        if self.done is not None:
            return
        text = "".join(self._text)
        content, summary = ReasoningText(text=text), SummaryText(text=text)
        if self._as_text:
            self._emit(ReasoningTextDone, content_index=0, text=text)
            self._emit(ContentPartDone, content_index=0, part=content)
        else:
            self._emit(ReasoningSummaryTextDone, summary_index=0, text=text)
            self._emit(ReasoningSummaryPartDone, summary_index=0, part=summary)
        self.done = self._item.model_copy(
            update={
                "status": status,
                "content": [content],
                "summary": [] if self._as_text else [summary],
                "encrypted_content": encode_reasoning(text) if self._opaque else None,
            }
        )


class FunctionCallWriter(ItemWriter):
    def __init__(self, emit: Emit, index: int, item_id: str, *, call_id: str, tool: ClientTarget) -> None:
        item = FunctionCall(
            id=item_id, status="in_progress", call_id=call_id, namespace=tool.namespace, name=tool.name, arguments=""
        )
        super().__init__(emit, index, item)
        self._name = tool.name
        self._arguments: list[str] = []

    def add(self, text: str) -> None:
        self._arguments.append(text)
        self._emit(FunctionCallArgumentsDelta, delta=text)

    def end(self, status: End) -> None:
        if self.done is None:
            arguments = "".join(self._arguments)
            self._emit(FunctionCallArgumentsDone, name=self._name, arguments=arguments)
            self.done = self._item.model_copy(update={"status": status, "arguments": arguments})


class CustomCallWriter(ItemWriter):
    """A call whose arguments, ``{"input": "..."}``, are told as their text."""

    def __init__(self, emit: Emit, index: int, item_id: str, *, call_id: str, tool: ClientTarget) -> None:
        item = CustomToolCall(
            id=item_id, status="in_progress", call_id=call_id, namespace=tool.namespace, name=tool.name, input=""
        )
        super().__init__(emit, index, item)
        self._reader = CustomInput()
        self._input: list[str] = []

    def add(self, text: str) -> None:
        self._write(self._reader.feed(text))

    def end(self, status: End) -> None:
        if self.done is None:
            self._write(self._reader.finish(cut=status == "incomplete"))
            text = "".join(self._input)
            self._emit(CustomToolCallInputDone, input=text)
            self.done = self._item.model_copy(update={"status": status, "input": text})

    def _write(self, text: str) -> None:
        if text:
            self._input.append(text)
            self._emit(CustomToolCallInputDelta, delta=text)


class McpCallWriter(ItemWriter):
    """A call that this server runs: after its arguments, it waits for what comes of it."""

    def __init__(self, emit: Emit, index: int, item: McpCall) -> None:
        super().__init__(emit, index, item)
        self._arguments: list[str] = []
        self._whole = False
        self._emit(McpCallInProgress)

    def add(self, text: str) -> None:
        self._arguments.append(text)
        self._emit(McpCallArgumentsDelta, delta=text)

    def end(self, status: End) -> None:
        if not self._whole:
            self._whole = True
            self._emit(McpCallArgumentsDone, arguments="".join(self._arguments))
        if status == "incomplete":
            self.abandon()

    def result(self, outcome: ToolOutcome) -> None:
        """What came of it. The text that the model reads is in the item also where the tool failed."""
        self.end("completed")
        if outcome.error is None:
            self._finish(McpCallCompleted, status="completed", output=outcome.text)
        else:
            content = [{"type": "text", "text": outcome.text}]
            self._finish(McpCallFailed, status="failed", error={"type": "mcp_tool_execution_error", "content": content})

    def abandon(self) -> None:
        """It did not run, or did not end."""
        if self.done is None:
            self.end("completed")
            self._finish(McpCallFailed, status="incomplete")

    def _finish(self, kind: Callable[..., ResponseEvent], **fields: Any) -> None:
        if self.done is None:
            self._emit(kind)
            self.done = self._item.model_copy(update={"arguments": "".join(self._arguments), **fields})


class McpListWriter(ItemWriter):
    """The tools of a server, which are being asked for."""

    def __init__(self, emit: Emit, index: int, item_id: str, *, label: str) -> None:
        super().__init__(emit, index, McpListTools(id=item_id, server_label=label, tools=[]))
        self._emit(McpListToolsInProgress)

    def result(self, tools: Sequence[McpTool], error: str | None) -> None:
        """They are these, or why they could not be had."""
        if self.done is None:
            self._emit(McpListToolsCompleted if error is None else McpListToolsFailed)
            listed = [ListedTool.of(tool) for tool in tools]
            self.done = self._item.model_copy(update={"tools": listed, "error": error})

    def abandon(self) -> None:
        self.result((), "the response ended before the server answered")


class ApprovalRequestWriter(ItemWriter):
    """A call that waits for approval: it is done as soon as it is added."""

    def __init__(self, emit: Emit, index: int, item: McpApprovalRequest) -> None:
        super().__init__(emit, index, item)
        self.done = item
