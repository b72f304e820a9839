"""Wire types of OpenAI's completions (the API before chats), as pydantic models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    model_serializer,
)

from cvllm_jax.openai.types import ChatCompletionRequest, Message, StreamOptions, Usage
from cvllm_jax.openai.validation import describe_error

__all__ = [
    "MAX_PROMPTS",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionLogprobs",
    "CompletionRequest",
    "CompletionResponse",
    "TextOrTokens",
]

#: Prompts, or texts to embed, in one request.
MAX_PROMPTS = 2048

type _Token = Annotated[int, Field(ge=0)]
type _Tokens = Annotated[list[_Token], Field(min_length=1, fail_fast=True)]


def _kind(value: Any) -> str:
    """Which alternative is meant, by the first item: errors are then about that one, and no list is read four times.

    The brackets tell the names, which are part of an error's path, from keys of an object that was sent instead.
    """
    if not isinstance(value, list):
        return "[text]"
    return {int: "[tokens]", list: "[lists]"}.get(type(value[0]), "[texts]") if value else "[texts]"


type TextOrTokens = Annotated[
    Annotated[str, Tag("[text]")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS), Tag("[texts]")]
    | Annotated[_Tokens, Tag("[tokens]")]
    | Annotated[list[_Tokens], Field(min_length=1, max_length=MAX_PROMPTS), Tag("[lists]")],
    Discriminator(_kind),
]


class CompletionRequest(BaseModel):
    """A request to go on with a text. Fields that chat completions have too mean the same here."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    prompt: TextOrTokens
    """Text, token ids, or several of either. Text gets the tokens that the model's files put before it."""
    echo: bool | None = None
    """Put the prompt before the text, and with ``logprobs`` its tokens before the text's."""
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=0, le=20)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    """So many of the most likely tokens in each place; 0 for the log probabilities of the text's own tokens alone."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """16 by default, or what is left of the context if that is less. 0 generates nothing, to score a prompt."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    n: int | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    response_format: Any = None
    structured_outputs: Any = None

    @classmethod
    def parse(cls, data: Any) -> Self:
        """A decoded JSON body to a request; raises RequestError that names the field at fault."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise describe_error(error, data) from None

    def sampling(self) -> ChatCompletionRequest:
        """The fields that say how to choose tokens as a chat request has them, checked by its rules.

        Raises RequestError.
        """
        fields = {name: value for name in _SHARED if (value := getattr(self, name)) is not None}
        try:
            return ChatCompletionRequest(
                messages=[Message.user("")],
                logprobs=self.logprobs is not None,
                top_logprobs=self.logprobs,
                **fields,
            )
        except ValidationError as error:
            raise describe_error(error, fields) from None


# ``max_tokens`` is missing: it has another default here, and may be 0
_SHARED = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "seed",
    "logit_bias", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "n",
)  # fmt: skip


class CompletionLogprobs(BaseModel):
    """One entry a token in each list. A prompt's first token has no log probability: nothing comes before it."""

    tokens: list[str]
    """A token's text; ``bytes:\\xf0\\x9f`` where its bytes are no whole character."""
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    """The most likely tokens in the place, and the one that stands there."""
    text_offset: list[int]
    """Where in the choice's text the token begins, in characters."""


class CompletionChoice(BaseModel):
    """One continuation of one prompt."""

    text: str
    index: int
    """That of the prompt times ``n``, plus that of the choice among its prompt's."""
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None
    """None in all chunks of a stream but a choice's last."""


class CompletionResponse(BaseModel):
    """The continuations of all prompts, as OpenAI's ``text_completion``."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    """Unix time in seconds."""
    model: str
    choices: Sequence[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None


class CompletionChunk(CompletionResponse):
    """One event of a stream. ``usage`` is in the JSON only if it was set, be it to None."""

    @model_serializer(mode="wrap")
    def _leave_out_unset_usage(self, handler: SerializerFunctionWrapHandler) -> Mapping[str, Any]:
        data: dict[str, Any] = handler(self)
        if "usage" not in self.model_fields_set:
            data.pop("usage", None)
        return data
