"""What an answer's text must look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from cvllm_jax.openai.types.fields import STRICT, optional

__all__ = ["JsonObjectFormat", "JsonSchema", "JsonSchemaFormat", "ResponseFormat", "StructuredOutputs", "TextFormat"]


class TextFormat(BaseModel):
    """Any text."""

    model_config = STRICT

    type: Literal["text"]


class JsonObjectFormat(BaseModel):
    """A JSON object."""

    model_config = STRICT

    type: Literal["json_object"]


class JsonSchema(BaseModel):
    """A schema with its name."""

    model_config = STRICT

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$", max_length=64)]
    description: str | None = optional()
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = optional()
    """Accepted; the schema is enforced always."""


class JsonSchemaFormat(BaseModel):
    """JSON that validates against a schema."""

    model_config = STRICT

    type: Literal["json_schema"]
    json_schema: JsonSchema


type ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
"""A request's ``response_format``: text, any JSON object, or JSON for a schema; ``type`` says which."""


class StructuredOutputs(BaseModel):
    """What OpenAI's API has no field for; names are vLLM's. Exactly one field is to be set."""

    model_config = STRICT

    json_: Annotated[dict[str, Any] | bool | str | None, Field(alias="json")] = None
    """A JSON schema, or its text."""
    json_object: bool | None = None
    """Any JSON object."""
    regex: Annotated[str, Field(min_length=1)] | None = None
    """A regular expression (ECMA 262) that matches the whole answer."""
    grammar: Annotated[str, Field(min_length=1)] | None = None
    """A grammar in the Lark dialect of llguidance, whose first rule is ``start``."""
    choice: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None
    """The answer is one of these texts."""
