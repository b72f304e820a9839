"""What a stream tells about a response on its way, in the names of OpenAI's OpenAPI description 2.3.0."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from cvllm_jax.openai.types.fields import STRICT
from cvllm_jax.responses.types.content import OutputText, ReasoningText, Refusal, SummaryText, TextLogprob
from cvllm_jax.responses.types.items import Item
from cvllm_jax.responses.types.response import Response

__all__ = [
    "ContentPartAdded",
    "ContentPartDone",
    "CustomToolCallInputDelta",
    "CustomToolCallInputDone",
    "ErrorDetails",
    "ErrorEvent",
    "FunctionCallArgumentsDelta",
    "FunctionCallArgumentsDone",
    "McpCallArgumentsDelta",
    "McpCallArgumentsDone",
    "McpCallCompleted",
    "McpCallFailed",
    "McpCallInProgress",
    "McpListToolsCompleted",
    "McpListToolsFailed",
    "McpListToolsInProgress",
    "OutputItemAdded",
    "OutputItemDone",
    "OutputTextDelta",
    "OutputTextDone",
    "ReasoningSummaryPartAdded",
    "ReasoningSummaryPartDone",
    "ReasoningSummaryTextDelta",
    "ReasoningSummaryTextDone",
    "ReasoningTextDelta",
    "ReasoningTextDone",
    "RefusalDelta",
    "RefusalDone",
    "ResponseCompleted",
    "ResponseCreated",
    "ResponseEvent",
    "ResponseFailed",
    "ResponseInProgress",
    "ResponseIncomplete",
    "ResponseQueued",
]


class Event(BaseModel):
    """One event. ``type`` is also the name of the server-sent event."""

    model_config = STRICT

    type: str
    sequence_number: int
    """Counts the events of a response from 0."""


class _OfResponse(Event):
    response: Response
    """As it is at that moment."""


class ResponseCreated(_OfResponse):
    type: Literal["response.created"] = "response.created"


class ResponseQueued(_OfResponse):
    type: Literal["response.queued"] = "response.queued"


class ResponseInProgress(_OfResponse):
    type: Literal["response.in_progress"] = "response.in_progress"


class ResponseCompleted(_OfResponse):
    type: Literal["response.completed"] = "response.completed"


class ResponseIncomplete(_OfResponse):
    type: Literal["response.incomplete"] = "response.incomplete"


class ResponseFailed(_OfResponse):
    type: Literal["response.failed"] = "response.failed"


class ErrorDetails(BaseModel):
    model_config = STRICT

    type: str
    code: str | None
    message: str
    param: str | None


class ErrorEvent(Event):
    """An error that ends a stream. OpenAI's description has its fields here, Open Responses has them in ``error``."""

    type: Literal["error"] = "error"
    code: str | None
    message: str
    param: str | None
    error: ErrorDetails

    @classmethod
    def of(cls, error: ErrorDetails, sequence_number: int) -> ErrorEvent:
        return cls(
            sequence_number=sequence_number, code=error.code, message=error.message, param=error.param, error=error
        )


class OutputItemAdded(Event):
    type: Literal["response.output_item.added"] = "response.output_item.added"
    output_index: int
    """Which of the response's items, from 0, in the order in which they are added."""
    item: Item


class OutputItemDone(Event):
    type: Literal["response.output_item.done"] = "response.output_item.done"
    output_index: int
    item: Item


class _OfItem(Event):
    item_id: str
    output_index: int


class _OfContent(_OfItem):
    content_index: int


class _OfSummary(_OfItem):
    summary_index: int


class ContentPartAdded(_OfContent):
    type: Literal["response.content_part.added"] = "response.content_part.added"
    part: Annotated[OutputText | Refusal | ReasoningText, Field(discriminator="type")]


class ContentPartDone(_OfContent):
    type: Literal["response.content_part.done"] = "response.content_part.done"
    part: Annotated[OutputText | Refusal | ReasoningText, Field(discriminator="type")]


class OutputTextDelta(_OfContent):
    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    delta: str
    logprobs: list[TextLogprob] = []


class OutputTextDone(_OfContent):
    type: Literal["response.output_text.done"] = "response.output_text.done"
    text: str
    logprobs: list[TextLogprob] = []


class RefusalDelta(_OfContent):
    type: Literal["response.refusal.delta"] = "response.refusal.delta"
    delta: str


class RefusalDone(_OfContent):
    type: Literal["response.refusal.done"] = "response.refusal.done"
    refusal: str


class ReasoningTextDelta(_OfContent):
    type: Literal["response.reasoning_text.delta"] = "response.reasoning_text.delta"
    delta: str


class ReasoningTextDone(_OfContent):
    type: Literal["response.reasoning_text.done"] = "response.reasoning_text.done"
    text: str


class ReasoningSummaryPartAdded(_OfSummary):
    type: Literal["response.reasoning_summary_part.added"] = "response.reasoning_summary_part.added"
    part: SummaryText


class ReasoningSummaryPartDone(_OfSummary):
    type: Literal["response.reasoning_summary_part.done"] = "response.reasoning_summary_part.done"
    part: SummaryText


class ReasoningSummaryTextDelta(_OfSummary):
    type: Literal["response.reasoning_summary_text.delta"] = "response.reasoning_summary_text.delta"
    delta: str


class ReasoningSummaryTextDone(_OfSummary):
    type: Literal["response.reasoning_summary_text.done"] = "response.reasoning_summary_text.done"
    text: str


class FunctionCallArgumentsDelta(_OfItem):
    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"
    delta: str


class FunctionCallArgumentsDone(_OfItem):
    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    name: str
    arguments: str


class CustomToolCallInputDelta(_OfItem):
    type: Literal["response.custom_tool_call_input.delta"] = "response.custom_tool_call_input.delta"
    delta: str


class CustomToolCallInputDone(_OfItem):
    type: Literal["response.custom_tool_call_input.done"] = "response.custom_tool_call_input.done"
    input: str


class McpListToolsInProgress(_OfItem):
    type: Literal["response.mcp_list_tools.in_progress"] = "response.mcp_list_tools.in_progress"


class McpListToolsCompleted(_OfItem):
    type: Literal["response.mcp_list_tools.completed"] = "response.mcp_list_tools.completed"


class McpListToolsFailed(_OfItem):
    type: Literal["response.mcp_list_tools.failed"] = "response.mcp_list_tools.failed"


class McpCallInProgress(_OfItem):
    type: Literal["response.mcp_call.in_progress"] = "response.mcp_call.in_progress"


class McpCallArgumentsDelta(_OfItem):
    type: Literal["response.mcp_call_arguments.delta"] = "response.mcp_call_arguments.delta"
    delta: str


class McpCallArgumentsDone(_OfItem):
    type: Literal["response.mcp_call_arguments.done"] = "response.mcp_call_arguments.done"
    arguments: str


class McpCallCompleted(_OfItem):
    type: Literal["response.mcp_call.completed"] = "response.mcp_call.completed"


class McpCallFailed(_OfItem):
    type: Literal["response.mcp_call.failed"] = "response.mcp_call.failed"


type ResponseEvent = Annotated[
    ResponseCreated
    | ResponseQueued
    | ResponseInProgress
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
    | ErrorEvent
    | OutputItemAdded
    | OutputItemDone
    | ContentPartAdded
    | ContentPartDone
    | OutputTextDelta
    | OutputTextDone
    | RefusalDelta
    | RefusalDone
    | ReasoningTextDelta
    | ReasoningTextDone
    | ReasoningSummaryPartAdded
    | ReasoningSummaryPartDone
    | ReasoningSummaryTextDelta
    | ReasoningSummaryTextDone
    | FunctionCallArgumentsDelta
    | FunctionCallArgumentsDone
    | CustomToolCallInputDelta
    | CustomToolCallInputDone
    | McpListToolsInProgress
    | McpListToolsCompleted
    | McpListToolsFailed
    | McpCallInProgress
    | McpCallArgumentsDelta
    | McpCallArgumentsDone
    | McpCallCompleted
    | McpCallFailed,
    Field(discriminator="type"),
]
