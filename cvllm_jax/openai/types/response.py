"""Answers to chat completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from cvllm_jax.openai.types.fields import optional
from cvllm_jax.openai.types.messages import FunctionCall, Message, ToolCall

__all__ = [
    "ChatChoice",
    "ChatCompletionChunk",
    "ChatCompletionResponse",
    "ChoiceDelta",
    "ChoiceLogprobs",
    "ChunkChoice",
    "CompletionTokensDetails",
    "FinishReasonName",
    "FunctionCallDelta",
    "PromptTokensDetails",
    "TokenLogprob",
    "ToolCallDelta",
    "TopTokenLogprob",
    "Usage",
    "merge_tool_call_delta",
]

type FinishReasonName = Literal["stop", "length", "tool_calls"]


class TopTokenLogprob(BaseModel):
    """A token that could have stood at a place of the answer, and its natural log probability."""

    token: str
    """The token's bytes as text; bytes that are no whole character show as U+FFFD."""
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopTokenLogprob):
    """A token of the answer, with its log probability and the likeliest tokens at its place."""

    top_logprobs: list[TopTokenLogprob]


class ChoiceLogprobs(BaseModel):
    """Log probabilities of an answer's tokens, in their order."""

    content: list[TokenLogprob] | None
    refusal: None = None


class PromptTokensDetails(BaseModel):
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were in the prefix cache."""
    audio_tokens: int = 0


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(BaseModel):
    """Tokens that a request took: of its prompt, of all its answers, and both together."""

    prompt_tokens: int
    completion_tokens: int
    """Generated tokens of all choices."""
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = Field(default_factory=PromptTokensDetails)
    completion_tokens_details: CompletionTokensDetails = Field(default_factory=CompletionTokensDetails)


class ChatChoice(BaseModel):
    """One answer of a chat completion; there are as many as the request's ``n``."""

    index: int
    message: Message
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReasonName


class ChatCompletionResponse(BaseModel):
    """A conversation's whole answer, as OpenAI's ``chat.completion``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Unix time in seconds."""
    model: str
    choices: Sequence[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None


class FunctionCallDelta(BaseModel):
    """What a chunk adds to the name and arguments of a call: strings to append."""

    name: str | None = optional()
    arguments: str | None = optional()


class ToolCallDelta(BaseModel):
    """What a chunk adds to a tool call. Id, type and name come once, with the first one of a call."""

    index: int
    """Which of the choice's calls, from 0."""
    id: str | None = optional()
    type: Literal["function"] | None = optional()
    function: FunctionCallDelta | None = optional()


def merge_tool_call_delta(tool_calls: list[ToolCall], delta: ToolCallDelta) -> None:
    """Add what a chunk says about a call to the calls so far.

    Raises ValueError for a delta that neither continues a call of the list nor begins the next one.
    """
    function = delta.function or FunctionCallDelta()
    if delta.index == len(tool_calls) and delta.id is not None and function.name is not None:
        call = FunctionCall(name=function.name, arguments=function.arguments or "")
        tool_calls.append(ToolCall(id=delta.id, function=call))
    elif 0 <= delta.index < len(tool_calls):
        tool_calls[delta.index].function.arguments += function.arguments or ""
    else:
        raise ValueError(f"a delta for tool call {delta.index}, of which only {len(tool_calls)} have begun")


class ChoiceDelta(BaseModel):
    """What a chunk adds to its choice."""

    role: Literal["assistant"] | None = optional()
    content: str | None = optional()
    reasoning_content: str | None = optional()
    tool_calls: Sequence[ToolCallDelta] | None = optional()


class ChunkChoice(BaseModel):
    """What a chunk of a stream adds to one answer; the last one has its ``finish_reason``."""

    index: int
    delta: ChoiceDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReasonName | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a stream. ``usage`` is in the JSON only if it was set, be it to None."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: Sequence[ChunkChoice]
    system_fingerprint: str | None = None
    usage: Usage | None = None

    @model_serializer(mode="wrap")
    def _leave_out_unset_usage(self, handler: SerializerFunctionWrapHandler) -> Mapping[str, Any]:
        data: dict[str, Any] = handler(self)
        if "usage" not in self.model_fields_set:
            data.pop("usage", None)
        return data
