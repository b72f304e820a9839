"""Parts of messages, of reasoning and of tools' outputs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from cvllm_jax.openai.types import TokenLogprob
from cvllm_jax.openai.types.fields import OPEN, STRICT, optional

__all__ = [
    "ContentPart",
    "InputAudio",
    "InputFile",
    "InputImage",
    "InputText",
    "InputVideo",
    "OutputText",
    "PlainText",
    "ReasoningText",
    "Refusal",
    "SummaryText",
    "TextLogprob",
    "TopTextLogprob",
    "text_logprob",
]


class InputText(BaseModel):
    model_config = OPEN

    type: Literal["input_text"] = "input_text"
    text: str


class InputImage(BaseModel):
    """Accepted, and not looked at: models read text only."""

    model_config = OPEN

    type: Literal["input_image"] = "input_image"
    image_url: str | None = None
    """An address or a data URL."""
    file_id: str | None = optional()
    detail: str | None = "auto"


class InputFile(BaseModel):
    """Accepted, and not looked at."""

    model_config = OPEN

    type: Literal["input_file"] = "input_file"
    filename: str | None = optional()
    file_data: str | None = optional()
    file_id: str | None = optional()
    file_url: str | None = optional()


class InputAudio(BaseModel):
    """Accepted, and not listened to."""

    model_config = OPEN

    type: Literal["input_audio"] = "input_audio"


class InputVideo(BaseModel):
    """Accepted, and not looked at."""

    model_config = OPEN

    type: Literal["input_video"] = "input_video"


class PlainText(BaseModel):
    model_config = OPEN

    type: Literal["text"] = "text"
    text: str


class TopTextLogprob(BaseModel):
    model_config = STRICT

    token: str
    logprob: float
    bytes: list[int] = []


class TextLogprob(TopTextLogprob):
    top_logprobs: list[TopTextLogprob] = []


# Clients that send an answer back write null for what it did not have.
def _or_empty(value: Any) -> Any:
    return [] if value is None else value


class OutputText(BaseModel):
    """Text that a model wrote."""

    model_config = OPEN

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: Annotated[list[dict[str, Any]], BeforeValidator(_or_empty)] = []
    logprobs: Annotated[list[TextLogprob], BeforeValidator(_or_empty)] = []


class Refusal(BaseModel):
    model_config = OPEN

    type: Literal["refusal"] = "refusal"
    refusal: str


class ReasoningText(BaseModel):
    model_config = OPEN

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class SummaryText(BaseModel):
    model_config = OPEN

    type: Literal["summary_text"] = "summary_text"
    text: str


type ContentPart = Annotated[
    InputText
    | OutputText
    | Refusal
    | InputImage
    | InputFile
    | InputAudio
    | InputVideo
    | PlainText
    | ReasoningText
    | SummaryText,
    Field(discriminator="type"),
]


def text_logprob(logprob: TokenLogprob) -> TextLogprob:
    """A token's log probability as this API writes it, where bytes are never null."""
    return TextLogprob(
        token=logprob.token,
        logprob=logprob.logprob,
        bytes=logprob.bytes or [],
        top_logprobs=[
            TopTextLogprob(token=top.token, logprob=top.logprob, bytes=top.bytes or []) for top in logprob.top_logprobs
        ],
    )
