"""Wire types of OpenAI's chat completions, as pydantic models.

Names and nesting follow OpenAI's OpenAPI description 2.3.0. Requests are strict: a number in
quotes is not a number. Keys that OpenAI leaves out when they have no value are left out here too;
keys that it sends as null are sent as null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from cvllm_jax.openai.validation import describe_error

__all__ = [
    "ChatChoice",
    "ChatCompletionChunk",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "ChoiceDelta",
    "ChoiceLogprobs",
    "ChunkChoice",
    "CompletionTokensDetails",
    "ContentPart",
    "FinishReasonName",
    "Message",
    "PromptTokensDetails",
    "StreamOptions",
    "TokenLogprob",
    "TopTokenLogprob",
    "Usage",
]

type FinishReasonName = Literal["stop", "length", "tool_calls"]

_absent: Callable[[Any], bool] = lambda value: value is None  # noqa: E731


def _optional() -> Any:
    """A field that is left out of the JSON while it is None."""
    return Field(default=None, exclude_if=_absent)


class ContentPart(BaseModel):
    """One part of a message's content. Text parts only, for text-only models."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str
    text: str | None = _optional()
    refusal: str | None = _optional()


class Message(BaseModel):
    """One turn of a conversation, in requests and in answers.

    Keys that are not listed here are kept and given to the chat template.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Field(min_length=1)] | None = None
    name: str | None = _optional()
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = _optional()
    tool_call_id: str | None = _optional()

    @classmethod
    def user(cls, content: str) -> Self:
        return cls(role="user", content=content)

    @classmethod
    def system(cls, content: str) -> Self:
        return cls(role="system", content=content)

    @classmethod
    def developer(cls, content: str) -> Self:
        """Instructions from the application; given to the template as a system message."""
        return cls(role="developer", content=content)

    @classmethod
    def assistant(cls, content: str | None) -> Self:
        return cls(role="assistant", content=content)


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    """Send one more chunk at the end, without choices and with the usage."""
    include_obfuscation: bool | None = None
    """Accepted; chunks are never padded."""


type _Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
type _Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
type _Stop = Annotated[str, Field(min_length=1)]


class ChatCompletionRequest(BaseModel):
    """A request for a chat completion.

    Fields that this version does not do are listed too, so that a request which needs them is
    refused instead of being answered without them. Unknown names are ignored and logged once.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: _Probability | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """-1 and 0 turn it off."""
    min_p: _Probability | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = None
    """Token id (as JSON key, a string of digits) to what is added to its logit."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The newer name of ``max_tokens``. Neither: up to the end of the context."""
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop: str | Annotated[list[_Stop], Field(min_length=1, max_length=4)] | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables for the model's chat template, such as ``enable_thinking``."""
    reasoning_effort: str | None = None
    """Given to the chat template; templates that do not know it ignore it."""

    store: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None

    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    verbosity: str | None = None
    best_of: int | None = None
    echo: bool | None = None

    @classmethod
    def parse(cls, data: Any) -> Self:
        """A decoded JSON body to a request; raises RequestError that names the field at fault."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise describe_error(error, data) from None


class TopTokenLogprob(BaseModel):
    token: str
    """The token's bytes as text; bytes that are no whole character show as U+FFFD."""
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopTokenLogprob):
    top_logprobs: list[TopTokenLogprob]


class ChoiceLogprobs(BaseModel):
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
    prompt_tokens: int
    completion_tokens: int
    """Generated tokens of all choices."""
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = Field(default_factory=PromptTokensDetails)
    completion_tokens_details: CompletionTokensDetails = Field(default_factory=CompletionTokensDetails)


class ChatChoice(BaseModel):
    index: int
    message: Message
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReasonName


class ChatCompletionResponse(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Unix time in seconds."""
    model: str
    choices: Sequence[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None


class ChoiceDelta(BaseModel):
    """What a chunk adds to its choice."""

    role: Literal["assistant"] | None = _optional()
    content: str | None = _optional()


class ChunkChoice(BaseModel):
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
