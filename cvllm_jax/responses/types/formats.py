"""What an answer's text must look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cvllm_jax.openai.types import JsonObjectFormat, JsonSchema, JsonSchemaFormat, ResponseFormat, TextFormat
from cvllm_jax.openai.types.fields import STRICT, optional

__all__ = ["JsonSchemaText", "TextConfig"]


class JsonSchemaText(BaseModel):
    """JSON that validates against a schema."""

    model_config = ConfigDict(strict=True, serialize_by_alias=True)

    type: Literal["json_schema"] = "json_schema"
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$", max_length=64)]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = False
    """Accepted; the schema is enforced always."""


class TextConfig(BaseModel):
    model_config = STRICT

    format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaText, Field(discriminator="type")] = TextFormat(
        type="text"
    )
    verbosity: Literal["low", "medium", "high"] | None = optional()
    """Accepted; models do not know it."""

    def chat_format(self) -> ResponseFormat:
        """The format as chat completions have it."""
        if not isinstance(self.format, JsonSchemaText):
            return self.format
        fields = self.format.model_dump(exclude={"type"}, exclude_none=True)
        return JsonSchemaFormat(type="json_schema", json_schema=JsonSchema(**fields))
