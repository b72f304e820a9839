"""Items of a conversation as the messages of a chat."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cvllm_jax.errors import McpToolExecutionError
from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.mcp_types import McpTool
from cvllm_jax.openai.types import ContentPart as ChatPart
from cvllm_jax.openai.types import FunctionCall as ChatFunctionCall
from cvllm_jax.openai.types import Message, ToolCall
from cvllm_jax.responses.items.ids import call_id_of, turn_of
from cvllm_jax.responses.items.item_text import error_text, part_text, reasoning_text
from cvllm_jax.responses.items.opaque import decode_compaction
from cvllm_jax.responses.types import (
    Compaction,
    ContentPart,
    CustomToolCall,
    CustomToolCallOutput,
    FunctionCall,
    FunctionCallOutput,
    Item,
    McpApprovalRequest,
    McpApprovalResponse,
    McpCall,
    McpListTools,
    MessageItem,
    Reasoning,
)

__all__ = ["Transcript", "messages_of", "read_transcript"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What a conversation's items come to."""

    messages: Sequence[Message]
    pending: Sequence[ToolCall] = ()
    """Calls of the last assistant message that were approved and have not run."""
    approvals: Mapping[str, McpApprovalRequest] = field(default_factory=dict)
    """The requests that approved these, by call id."""
    tool_lists: Mapping[str, Sequence[McpTool]] = field(default_factory=dict)
    """The tools of MCP servers, by label, as they were last listed."""


def messages_of(items: Iterable[Item], instructions: str | None = None) -> list[Message]:
    """The messages of :func:`read_transcript`."""
    return list(read_transcript(items, instructions).messages)


def read_transcript(
    items: Iterable[Item],
    instructions: str | None = None,
    *,
    tool_names: Mapping[tuple[str, str], str] | None = None,
) -> Transcript:
    """The conversation that ``items`` tell of.

    What the model wrote in one turn becomes one assistant message, and its calls' results follow it in the order of
    the calls, wherever their items stand. Calls that were cut are left out, unless somebody answered them. System
    messages at the beginning, ``instructions`` before all, become one: many chat templates take no second one.

    Arguments:
        items: input and output items in order, without references.
        instructions: what the model is told before everything else.
        tool_names: what the model calls the tool (label of its MCP server or namespace, name), where that is not
            its own name.

    Raises RequestError for an output or an approval that answers nothing, a call that nothing answers, an item that
    is not there, and an empty conversation.
    """
    reader = _Reader(tool_names or {})
    for item in items:
        reader.read(item)
    return reader.transcript(instructions)


@dataclass(slots=True)
class _Call:
    """A call, and what answered it."""

    call: ToolCall
    kind: str
    cut: bool = False
    output: str | None = None
    request: McpApprovalRequest | None = None
    approved: bool | None = None
    decided: bool = False
    """By an approval response."""


@dataclass(slots=True)
class _Turn:
    """What the model wrote at once."""

    key: str | None
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    phase: str | None = None
    calls: list[_Call] = field(default_factory=list)

    @property
    def answered(self) -> bool:
        return all(call.output is not None for call in self.calls)

    def message(self) -> Message:
        calls = [call.call for call in self.calls]
        text = "".join(self.texts)
        message = Message(
            role="assistant",
            content=text if text or not calls else None,
            reasoning_content="".join(self.reasoning) or None,
            tool_calls=calls or None,
        )
        return message if self.phase is None else message.model_copy(update={"phase": self.phase})


class _Reader:
    """Takes items one by one."""

    def __init__(self, tool_names: Mapping[tuple[str, str], str]) -> None:
        self._tool_names = tool_names
        self._entries: list[Message | _Turn] = []
        self._turn: _Turn | None = None
        """The turn that the next item may belong to."""
        self._calls: dict[str, list[_Call]] = {}
        """Unanswered calls of the client's tools, by call id."""
        self._requests: dict[str, _Call] = {}
        self._tool_lists: dict[str, list[McpTool]] = {}

    def read(self, item: Item) -> None:
        match item:
            case MessageItem():
                self._read_message(item)
            case Reasoning():
                self._turn_with(item.id, follows_text=False).reasoning.append(reasoning_text(item))
            case FunctionCall():
                name = self._shown(item.namespace, item.name)
                self._add_call(item.id, item.call_id, name, item.arguments, "function call", item.status)
            case CustomToolCall():
                arguments = json.dumps({"input": item.input}, ensure_ascii=False)
                name = self._shown(item.namespace, item.name)
                self._add_call(item.id, item.call_id, name, arguments, "custom tool call", item.status)
            case FunctionCallOutput():
                self._answer(item.call_id, item.output, "function call")
            case CustomToolCallOutput():
                self._answer(item.call_id, item.output, "custom tool call")
            case McpListTools():
                if item.error is None:
                    self._tool_lists[item.server_label] = [tool.mcp_tool() for tool in item.tools]
            case McpCall():
                self._read_mcp_call(item)
            case McpApprovalRequest():
                call = self._mcp_call(item.id, item.server_label, item.name, item.arguments)
                call.request = item
                self._turn_with(item.id).calls.append(call)
                self._requests[item.id] = call
            case McpApprovalResponse():
                self._read_approval(item)
            case Compaction():
                self._turn = None
                for compacted in decode_compaction(item.encrypted_content):
                    self.read(compacted)
                self._turn = None
            case _:
                raise RequestError(f"Item with id '{item.id[:100]}' not found.", param="input")

    def transcript(self, instructions: str | None) -> Transcript:
        turns = [entry for entry in self._entries if isinstance(entry, _Turn)]
        for turn in turns:
            turn.calls = [call for call in turn.calls if call.output is not None or not call.cut]
        self._check_answered(turns)
        messages = [] if instructions is None else [Message.system(instructions)]
        for entry in self._entries:
            if isinstance(entry, Message):
                messages.append(entry)
                continue
            messages.append(entry.message())
            for call in entry.calls:
                if call.output is None and entry is not turns[-1]:
                    call.output = "This call did not run."  # it was approved, and then its response failed
                if call.output is not None:
                    name = call.call.function.name
                    messages.append(Message.tool_with_name(call.call.id, call.output, name))
        if not messages:
            raise RequestError("Invalid 'input': there is nothing to answer.", param="input", code="invalid_value")
        waiting = [call for call in turns[-1].calls if call.output is None] if turns else []
        return Transcript(
            messages=_one_system_message(messages),
            pending=[call.call for call in waiting],
            approvals={call.call.id: call.request for call in waiting if call.request is not None},
            tool_lists=self._tool_lists,
        )

    def _read_message(self, item: MessageItem) -> None:
        parts = [item.content] if isinstance(item.content, str) else [part_text(part) for part in item.content]
        if item.role == "assistant":
            turn = self._turn_with(item.id, follows_text=False)
            turn.texts.append("\n".join(parts))
            turn.phase = item.phase or turn.phase
            return
        self._turn = None
        content = parts[0] if len(parts) == 1 else [ChatPart(type="text", text=part) for part in parts]
        self._entries.append(Message(role=item.role, content=content or ""))

    def _turn_with(self, item_id: str | None, *, follows_text: bool = True, follows_calls: bool = True) -> _Turn:
        """The turn that an item belongs to.

        Ids that this server made tell. Without them, whatever the model wrote before its calls were answered belongs
        together, and text ends a turn unless calls follow.
        """
        key, turn = turn_of(item_id), self._turn
        if turn is not None and key is not None and turn.key is not None:
            belongs = turn.key == key
        elif turn is not None and turn.calls:
            belongs = follows_calls and not turn.answered
        else:
            belongs = turn is not None and (follows_text or not turn.texts)
        if turn is None or not belongs:
            turn = self._turn = _Turn(key)
            self._entries.append(turn)
        turn.key = turn.key or key
        return turn

    def _add_call(
        self, item_id: str | None, call_id: str, name: str, arguments: str, kind: str, status: str | None
    ) -> None:
        call = _Call(_tool_call(call_id, name, arguments), kind, cut=status == "incomplete")
        self._turn_with(item_id).calls.append(call)
        self._calls.setdefault(call_id, []).append(call)

    def _answer(self, call_id: str, output: str | Sequence[ContentPart], kind: str) -> None:
        waiting = [call for call in self._calls.get(call_id, ()) if call.kind == kind]
        if not waiting:
            raise RequestError(f"No tool call found for {kind} output with call_id {call_id[:100]}.", param="input")
        call = waiting[-1]
        self._calls[call_id].remove(call)
        call.output = output if isinstance(output, str) else "\n".join(map(part_text, output))
        self._turn = None

    def _mcp_call(self, item_id: str, label: str, name: str, arguments: str) -> _Call:
        return _Call(_tool_call(call_id_of(item_id), self._shown(label, name), arguments), "MCP tool call")

    def _shown(self, label: str | None, name: str) -> str:
        """What the model calls a tool: of an MCP server or a namespace, or one without a ``label``."""
        return name if label is None else self._tool_names.get((label, name), name)

    def _read_mcp_call(self, item: McpCall) -> None:
        call = self._requests.get(item.approval_request_id or "")
        if call is None or call.output is not None:
            item_id = item.id or f"mcp_{len(self._entries)}"
            call = self._mcp_call(item_id, item.server_label, item.name, item.arguments)
            self._turn_with(item.id, follows_calls=False).calls.append(call)
        call.approved = True
        if item.output is not None or item.error is not None:
            call.output = item.output if item.output is not None else error_text(item.error)
        else:
            call.cut = True

    def _read_approval(self, item: McpApprovalResponse) -> None:
        call = self._requests.get(item.approval_request_id)
        if call is None:
            raise RequestError(
                f"No MCP approval request found with id '{item.approval_request_id[:100]}'.", param="input"
            )
        if call.decided:
            raise RequestError(
                f"The MCP approval request '{item.approval_request_id[:100]}' has been answered already.", param="input"
            )
        call.decided = True
        self._turn = None
        if call.approved:
            return  # it has run, or was refused, without asking
        call.approved = item.approve
        if not item.approve:
            call.output = "The user denied this call." + (f" Reason: {item.reason}" if item.reason else "")

    def _check_answered(self, turns: Iterable[_Turn]) -> None:
        for call in (call for turn in turns for call in turn.calls if call.output is None):
            if call.request is None:
                raise RequestError(f"No tool output found for {call.kind} {call.call.id[:100]}.", param="input")
            if call.approved is None:
                raise RequestError(
                    f"The following MCP approval requests do not have an approval: {call.request.id[:100]}.",
                    param="input",
                )


def _tool_call(call_id: str, name: str, arguments: str) -> ToolCall:
    """A call as templates take it: many can print objects only, so arguments that are none are shown as none."""
    call = ToolCall(id=call_id, function=ChatFunctionCall(name=name, arguments=arguments))
    try:
        call.to_mcp_call()
    except McpToolExecutionError:
        call.function.arguments = "{}"
    return call


def _one_system_message(messages: Sequence[Message]) -> list[Message]:
    count = next((at for at, message in enumerate(messages) if message.role not in ("system", "developer")), None)
    first = messages[:count]
    if len(first) < 2:
        return list(messages)
    texts = [
        message.content if isinstance(message.content, str) else "\n".join(part.text or "" for part in message.content)
        for message in first
        if message.content is not None
    ]
    return [Message.system("\n\n".join(texts)), *messages[len(first) :]]
