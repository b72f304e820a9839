"""From what an agent reports to the events and items of a response."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cvllm_jax.errors import OtherError
from cvllm_jax.openai.mcp_types import McpTool
from cvllm_jax.openai.types import TokenLogprob, ToolCall
from cvllm_jax.responses.agent.types import (
    AgentEnded,
    AgentEnding,
    AgentEvent,
    CallArguments,
    CallStarted,
    ReasoningPiece,
    TextPiece,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    TurnStarted,
)
from cvllm_jax.responses.items.ids import ItemIds
from cvllm_jax.responses.items.item_writers import (
    ApprovalRequestWriter,
    CustomCallWriter,
    End,
    FunctionCallWriter,
    ItemWriter,
    McpCallWriter,
    McpListWriter,
    MessageWriter,
    ReasoningWriter,
)
from cvllm_jax.responses.items.tool_targets import ClientTarget, HeldCall, McpTarget, ToolTarget
from cvllm_jax.responses.types import (
    IncompleteDetails,
    Item,
    McpApprovalRequest,
    McpCall,
    OutputItemDone,
    Response,
    ResponseCompleted,
    ResponseCreated,
    ResponseError,
    ResponseEvent,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
    ResponseRequest,
    ResponseUsage,
)

__all__ = ["McpTarget", "ToolTarget", "Writer"]


class Writer:
    """Writes one response.

    Every method gives the events that it causes; ``response`` is the response as it is by then. Items are done in the
    order in which they were added: one that is whole waits for those before it that are not, such as calls that
    still run. Calls of tools that do not exist are not shown: the agent answers them itself.

    Arguments:
        request: says how reasoning is told (``reasoning_text`` events if it has ``reasoning``, a summary otherwise:
            OpenAI and Open Responses agree on the names of the latter only), and what is included.
        response: without an output yet.
        targets: the tools by the names that the model knows.
        approvals: requests that were approved, by the ids of the calls that run because of that.
        clock: gives the Unix time in seconds.
    """

    def __init__(
        self,
        request: ResponseRequest,
        response: Response,
        *,
        targets: Mapping[str, ToolTarget] | None = None,
        approvals: Mapping[str, McpApprovalRequest] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._response = response
        self._targets = {} if targets is None else targets
        self._approvals = dict(approvals or {})
        self._clock = clock
        self._reasoning_as_text = request.reasoning is not None
        self._opaque_reasoning = request.includes("reasoning.encrypted_content")
        self._with_logprobs = request.includes("message.output_text.logprobs")

        self._events: list[ResponseEvent] = []
        self._sequence_number = 0
        self._ids = ItemIds()
        self._turn = 0
        self._added = 0
        self._open: list[ItemWriter] = []
        """Added and not done, in order."""
        self._current: ItemWriter | HeldCall | None = None
        """What the model is writing."""
        self._call_index = -1
        self._running: dict[str, McpCallWriter] = {}
        """Calls without a result, by call id."""
        self._lists: dict[str, McpListWriter] = {}
        self._output: list[Item] = []
        self._ended = False

    @property
    def response(self) -> Response:
        """The response so far, with the items that are done."""
        return self._response.model_copy(update={"output": list(self._output)})

    @property
    def ended(self) -> bool:
        return self._ended

    def begin(self, *, queued: bool = False) -> list[ResponseEvent]:
        """The first events. A ``queued`` response goes on with :meth:`start`."""
        self._set(status="queued" if queued else "in_progress")
        self._emit(ResponseCreated, response=self.response)
        self._emit(ResponseQueued if queued else ResponseInProgress, response=self.response)
        return self._drain()

    def start(self) -> list[ResponseEvent]:
        """A queued response is being worked on."""
        self._set(status="in_progress")
        self._emit(ResponseInProgress, response=self.response)
        return self._drain()

    def start_listing(self, label: str) -> list[ResponseEvent]:
        """An MCP server is asked for its tools."""
        self._lists[label] = self._add(McpListWriter, "mcpl", label=label)
        return self._drain()

    def list_tools(self, label: str, tools: Sequence[McpTool] = (), error: str | None = None) -> list[ResponseEvent]:
        """Its answer: its tools, or why there are none."""
        if label not in self._lists:
            self._lists[label] = self._add(McpListWriter, "mcpl", label=label)
        self._lists.pop(label).result(tools, error)
        return self._drain()

    def take(self, event: AgentEvent) -> list[ResponseEvent]:
        """What the agent reports. Its last event ends the response."""
        match event:
            case TurnStarted():
                self._turn = event.turn
            case ReasoningPiece():
                self._reasoning().add(event.text)
            case TextPiece():
                self._text(event.text, event.logprobs)
            case CallStarted():
                self._start_call(event)
            case CallArguments():
                if self._current is None or event.index != self._call_index:
                    raise OtherError(f"arguments of call {event.index}, which is not being written")
                self._current.add(event.text)
            case TurnEnded():
                self._leave("incomplete" if event.finish_reason == "length" else "completed")
            case ToolStarted():
                self._call_of(event.call)
            case ToolEnded():
                writer = self._call_of(event.call)
                if writer is not None:
                    del self._running[event.call.id]
                    writer.result(event.outcome)
            case AgentEnded():
                self._finish(event)
        return self._drain()

    def fail(self, error: ResponseError) -> list[ResponseEvent]:
        """The response failed. What was begun is closed as incomplete."""
        if not self._ended:
            self._abandon()
            self._set(status="failed", error=error)
            self._end(ResponseFailed)
        return self._drain()

    def cancel(self) -> list[ResponseEvent]:
        """The response was cancelled, which is its status from now on.

        The API has no event of that name: the stream ends as that of an incomplete response.
        """
        if not self._ended:
            self._abandon()
            self._set(status="incomplete")
            self._end(ResponseIncomplete)
            self._set(status="cancelled")
        return self._drain()

    def _finish(self, event: AgentEnded) -> None:
        self._leave("completed")
        for call in event.open_calls:
            # A policy asked for more than the targets said: the client has to see what it is to approve.
            if (writer := self._running.pop(call.id, None)) is not None:
                writer.abandon()
                self._request(call.id, call.function.arguments, self._targets[call.function.name])
        self._abandon()
        self._set(usage=ResponseUsage.of(event.usage))
        if event.ending in (AgentEnding.CUT, AgentEnding.MAX_TURNS):
            cut = IncompleteDetails(reason="max_output_tokens") if event.ending is AgentEnding.CUT else None
            self._set(status="incomplete", incomplete_details=cut)
            self._end(ResponseIncomplete)
        else:
            self._set(status="completed", completed_at=int(self._clock()))
            self._end(ResponseCompleted)

    def _reasoning(self) -> ReasoningWriter:
        if not isinstance(self._current, ReasoningWriter):
            self._leave("completed")
            self._current = self._add(
                ReasoningWriter, "rs", as_text=self._reasoning_as_text, opaque=self._opaque_reasoning
            )
        return self._current

    def _text(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        if not isinstance(self._current, MessageWriter):
            self._leave("completed")
            self._current = self._add(MessageWriter, "msg")
        self._current.add(text, logprobs if self._with_logprobs else ())

    def _start_call(self, call: CallStarted) -> None:
        self._leave("completed")
        self._call_index = call.index
        target = self._targets.get(call.name)
        if target is None:
            self._current = HeldCall(call.id, call.name, None)
        elif isinstance(target, McpTarget):
            self._current = HeldCall(call.id, call.name, target) if target.asks else self._mcp_call(call.id, target)
        else:
            tool = target if isinstance(target, ClientTarget) else ClientTarget(kind=target, name=call.name)
            if tool.kind == "function":
                self._current = self._add(FunctionCallWriter, "fc", call_id=call.id, tool=tool)
            else:
                self._current = self._add(CustomCallWriter, "ctc", call_id=call.id, tool=tool)

    def _mcp_call(self, call_id: str, tool: McpTarget | McpApprovalRequest) -> McpCallWriter:
        """Begin the item of a call, which may be one that was approved."""
        item = McpCall(
            id=self._ids.make("mcp", self._turn, call_id),
            status="in_progress",
            server_label=tool.server_label,
            name=tool.name,
            arguments="",
            approval_request_id=tool.id if isinstance(tool, McpApprovalRequest) else None,
        )
        writer = self._running[call_id] = self._opened(McpCallWriter, item=item)
        return writer

    def _whole_call(self, call_id: str, arguments: str, tool: McpTarget | McpApprovalRequest) -> McpCallWriter:
        writer = self._mcp_call(call_id, tool)
        writer.add(arguments)
        writer.end("completed")
        return writer

    def _call_of(self, call: ToolCall) -> McpCallWriter | None:
        """The item of a call that runs. Calls that were approved begin here."""
        if call.id in self._running:
            return self._running[call.id]
        tool = self._approvals.pop(call.id, None) or self._targets.get(call.function.name)
        if not isinstance(tool, McpTarget | McpApprovalRequest):
            return None
        return self._whole_call(call.id, call.function.arguments, tool)

    def _request(self, call_id: str, arguments: str, target: ToolTarget) -> None:
        """Ask for approval."""
        assert isinstance(target, McpTarget)
        item = McpApprovalRequest(
            id=self._ids.make("mcpr", self._turn, call_id),
            server_label=target.server_label,
            name=target.name,
            arguments=arguments,
        )
        self._approvals[call_id] = item
        self._opened(ApprovalRequestWriter, item=item)

    def _leave(self, status: End) -> None:
        """The model goes on to something else, or ends."""
        current, self._current = self._current, None
        if isinstance(current, ItemWriter):
            current.end(status)
        elif current is not None and current.target is not None and status == "completed":
            if current.can_run:
                self._request(current.id, current.arguments, current.target)
            else:
                self._whole_call(current.id, current.arguments, current.target)
        self._flush()

    def _abandon(self) -> None:
        """Close what is open."""
        self._leave("incomplete")
        self._running.clear()
        for writer in self._open:
            writer.abandon()

    def _add[W: ItemWriter](self, kind: Callable[..., W], prefix: str, **fields: Any) -> W:
        return self._opened(kind, item_id=self._ids.make(prefix, self._turn), **fields)

    def _opened[W: ItemWriter](self, kind: Callable[..., W], **fields: Any) -> W:
        writer = kind(self._emit, self._added, **fields)
        self._added += 1
        self._open.append(writer)
        return writer

    def _set(self, **fields: Any) -> None:
        self._response = self._response.model_copy(update=fields)

    def _end(self, kind: Callable[..., ResponseEvent]) -> None:
        self._flush()
        self._ended = True
        self._emit(kind, response=self.response)

    def _flush(self) -> None:
        """Tell of items that are done, in the order in which they were added."""
        while self._open and (item := self._open[0].done) is not None:
            self._emit(OutputItemDone, output_index=self._open.pop(0).index, item=item)
            self._output.append(item)

    def _emit(self, kind: Callable[..., ResponseEvent], **fields: Any) -> None:
        self._events.append(kind(sequence_number=self._sequence_number, **fields))
        self._sequence_number += 1

    def _drain(self) -> list[ResponseEvent]:
        self._flush()
        events, self._events = self._events, []
        return events
