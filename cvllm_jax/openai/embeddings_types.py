"""Wire types of OpenAI's embeddings, as pydantic models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cvllm_jax.openai.completions_types import TextOrTokens
from cvllm_jax.openai.validation import describe_error

__all__ = ["Embedding", "EmbeddingRequest", "EmbeddingResponse", "EmbeddingUsage"]


class EmbeddingRequest(BaseModel):
    """A request for the vectors of one text or many, as OpenAI's ``embeddings`` has it."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    input: TextOrTokens
    """Text, token ids, or several of either. Ids are taken as they are, without the tokens that frame a text."""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Cut vectors to so many numbers, for models that were trained for it."""
    user: str | None = None
    prompt_name: str | None = None
    """Which of the model's prompts stands before each text, such as "query" or "document"; an extension."""

    @classmethod
    def parse(cls, data: Any) -> Self:
        """A decoded JSON body to a request; raises RequestError that names the field at fault."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise describe_error(error, data) from None


class Embedding(BaseModel):
    """The vector of one text, with the place of the text in the request."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """The numbers, or the base64 of their little-endian float32."""


class EmbeddingUsage(BaseModel):
    """Tokens that the texts of a request have, together."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """The vectors of all texts, in the order of the request."""

    object: Literal["list"] = "list"
    data: Sequence[Embedding]
    model: str
    usage: EmbeddingUsage
