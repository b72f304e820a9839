"""Responses, as they are answered, stored and streamed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from cvllm_jax.openai.types import Usage
from cvllm_jax.openai.types.fields import OPEN, STRICT, optional
from cvllm_jax.responses.types.formats import TextConfig
from cvllm_jax.responses.types.items import Item
from cvllm_jax.responses.types.request import ConversationReference, ReasoningConfig, ResponseRequest
from cvllm_jax.responses.types.tools import (
    CustomTool,
    FunctionTool,
    HostedMcpTool,
    NamespaceTool,
    OtherTool,
    ToolChoice,
)

__all__ = [
    "IncompleteDetails",
    "InputTokensDetails",
    "OutputTokensDetails",
    "Response",
    "ResponseError",
    "ResponseStatus",
    "ResponseUsage",
]

type ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class IncompleteDetails(BaseModel):
    model_config = STRICT

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseError(BaseModel):
    model_config = OPEN

    code: str
    """One of OpenAI's, such as "server_error" or "invalid_prompt"."""
    message: str


class InputTokensDetails(BaseModel):
    model_config = STRICT

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    model_config = STRICT

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Tokens of all turns together."""

    model_config = STRICT

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int = 0

    @classmethod
    def of(cls, usage: Usage | None) -> Self:
        """From a chat completion's; None, if the model was not asked, is nothing used."""
        if usage is None:
            return cls()
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(
                reasoning_tokens=usage.completion_tokens_details.reasoning_tokens
            ),
            total_tokens=usage.total_tokens,
        )


class Response(BaseModel):
    """A response. Keys without a value are null: clients look for all of them."""

    model_config = OPEN

    id: str
    object: Literal["response"] = "response"
    created_at: int
    """Unix time in seconds."""
    completed_at: int | None = None
    status: ResponseStatus = "in_progress"
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[Item] = []
    usage: ResponseUsage | None = None

    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: ConversationReference | None = optional()
    tools: list[Annotated[FunctionTool | CustomTool | HostedMcpTool, Field(discriminator="type")]] = []
    """Namespaces, and those that this server does not have, are left out: strict clients know none of them."""
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    max_tool_calls: int | None = None
    text: TextConfig = TextConfig()
    reasoning: ReasoningConfig | None = None
    max_output_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int = 0
    truncation: Literal["auto", "disabled"] = "disabled"
    store: bool = True
    background: bool = False
    service_tier: str = "default"
    metadata: dict[str, str] = {}
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = optional()
    user: str | None = optional()

    @classmethod
    def begun(
        cls,
        request: ResponseRequest,
        *,
        id: str,  # noqa: A002
        created_at: int,
        **fields: Any,
    ) -> Self:
        """The response to ``request``, without an output yet. ``fields`` go before what the request says."""
        said = {name: value for name in _ECHOED if (value := getattr(request, name)) is not None}
        if request.tools is not None:
            said["tools"] = [tool for tool in request.tools if not isinstance(tool, NamespaceTool | OtherTool)]
        if request.conversation_id is not None:
            said["conversation"] = ConversationReference(id=request.conversation_id)
        return cls(id=id, created_at=created_at, **{**said, **fields})

    @property
    def output_text(self) -> str:
        """The text of all messages."""
        return "".join(
            part.text
            for item in self.output
            if item.type == "message" and not isinstance(item.content, str)
            for part in item.content
            if part.type == "output_text"
        )


_ECHOED = (
    "model", "instructions", "previous_response_id", "tool_choice", "parallel_tool_calls", "max_tool_calls", "text",
    "reasoning", "max_output_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs",
    "truncation", "store", "background", "service_tier", "metadata", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "user",
)  # fmt: skip
