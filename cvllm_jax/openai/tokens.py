"""Text to token ids and back, and chats to prompts: what vLLM's servers offer beside OpenAI's API, under its names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.prompt import render_prompt, template_messages
from cvllm_jax.openai.types import ChatCompletionRequest, Message
from cvllm_jax.openai.validation import describe_error

if TYPE_CHECKING:
    from cvllm_jax.engine.opening import AnyEngine

__all__ = [
    "DetokenizeRequest",
    "DetokenizeResponse",
    "TemplateRequest",
    "TemplateResponse",
    "TokenizeRequest",
    "TokenizeResponse",
    "apply_template",
    "detokenize",
    "tokenize",
]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    """Optional here: there is one model."""

    @classmethod
    def parse(cls, data: Any) -> Self:
        """A decoded JSON body to a request; raises RequestError that names the field at fault."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise describe_error(error, data) from None


class TemplateRequest(_Request):
    """A conversation to write as the model reads it."""

    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    """End with what begins the assistant's answer."""
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeRequest(TemplateRequest):
    """A text, or a conversation, to tokenize. Exactly one of ``prompt`` and ``messages``."""

    prompt: str | None = None
    add_special_tokens: bool | None = None
    """Put the tokens around a text that the model's files declare; by default yes. A conversation gets those that
    its template writes, and no others."""
    return_token_strs: bool = False


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    """The longest sequence that the server takes, in tokens."""
    tokens: list[int]
    token_strs: list[str] | None = None
    """The tokens as the vocabulary spells them."""


class DetokenizeRequest(_Request):
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]


class DetokenizeResponse(BaseModel):
    prompt: str
    """The text, control tokens included."""


class TemplateResponse(BaseModel):
    prompt: str


def tokenize(engine: AnyEngine, request: TokenizeRequest) -> TokenizeResponse:
    """The token ids of a text or a conversation. Raises RequestError and TokenizationError."""
    if (request.prompt is None) == (request.messages is None):
        raise RequestError("Give either 'prompt' or 'messages'.", param="prompt", code="invalid_parameter_combination")
    if request.prompt is not None:
        plain = request.add_special_tokens is False
        tokens = engine.tokenizer.encode(request.prompt) if plain else engine.tokenize(request.prompt)
    else:
        if request.add_special_tokens:
            raise RequestError(
                "'add_special_tokens' is not supported with 'messages': the chat template writes them.",
                param="add_special_tokens",
                code="invalid_parameter_combination",
            )
        tokens = render_prompt(engine.chat_template, _as_chat(request), request.tools or None)
    names = [engine.tokenizer.token_name(token) for token in tokens] if request.return_token_strs else None
    return TokenizeResponse(
        count=len(tokens), max_model_len=engine.model_info().max_sequence_length, tokens=tokens, token_strs=names
    )


def detokenize(engine: AnyEngine, request: DetokenizeRequest) -> DetokenizeResponse:
    """The text of token ids. Raises RequestError for ids that the vocabulary lacks."""
    size = engine.model_info().vocab_size
    for index, token in enumerate(request.tokens):
        if token >= size:
            raise RequestError(
                f"Invalid 'tokens[{index}]': there is no token {token}; this model's ids are 0 to {size - 1}.",
                param=f"tokens[{index}]",
                code="invalid_value",
            )
    return DetokenizeResponse(prompt=engine.tokenizer.decode(request.tokens, skip_special=False))


def apply_template(engine: AnyEngine, request: TemplateRequest) -> TemplateResponse:
    """A conversation as the text of a prompt. Raises RequestError and TokenizationError."""
    if request.messages is None:
        raise RequestError(
            "Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter"
        )
    if engine.chat_template is None:
        raise RequestError("This model has no chat template.", param="messages")
    variables = _as_chat(request).chat_template_kwargs or {}
    text = engine.chat_template.render(template_messages(request.messages), request.tools or None, **variables)
    return TemplateResponse(prompt=text)


def _as_chat(request: TemplateRequest) -> ChatCompletionRequest:
    assert request.messages is not None
    for name in ("messages", "tools"):
        if name in (request.chat_template_kwargs or {}):
            raise RequestError(
                f"'chat_template_kwargs' cannot set '{name}'; it is a field of the request.",
                param="chat_template_kwargs",
            )
    variables = {**(request.chat_template_kwargs or {}), "add_generation_prompt": request.add_generation_prompt}
    return ChatCompletionRequest(messages=request.messages, chat_template_kwargs=variables)
