"""Requests for chat completions."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError

from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.types.fields import OPEN, STRICT
from cvllm_jax.openai.types.formats import ResponseFormat, StructuredOutputs
from cvllm_jax.openai.types.messages import Message
from cvllm_jax.openai.types.tools import Tool, ToolChoice
from cvllm_jax.openai.validation import describe_error

__all__ = ["ChatCompletionRequest", "StreamOptions"]


class StreamOptions(BaseModel):
    """What a streamed answer has besides its text."""

    model_config = STRICT

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

    model_config = OPEN

    model: str = ""
    """Echoed in the answer, which names the engine's own model instead if it is empty. Over the wire it is required."""
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

    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    """By default the model decides; ``ToolChoice.mode("required")``, or as JSON ``"required"``."""
    parallel_tool_calls: bool | None = None
    """False: at most one call."""
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    """Further constraints: an extension, with vLLM's names."""

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

    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    verbosity: str | None = None
    best_of: int | None = None
    echo: bool | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_grammar: Any = None
    guided_choice: Any = None

    @classmethod
    def parse(cls, data: Any) -> Self:
        """A decoded JSON body to a request; raises RequestError that names the field at fault."""
        if isinstance(data, dict) and "model" not in data:
            raise RequestError("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise describe_error(error, data) from None
