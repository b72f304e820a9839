"""Requests for responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_core import PydanticCustomError

from cvllm_jax.openai.errors import RequestError
from cvllm_jax.openai.types import StreamOptions
from cvllm_jax.openai.types.fields import OPEN, STRICT, optional
from cvllm_jax.openai.unsupported import log_unknown_names
from cvllm_jax.openai.validation import describe_error
from cvllm_jax.responses.types.content import InputText
from cvllm_jax.responses.types.formats import TextConfig
from cvllm_jax.responses.types.items import Item, MessageItem
from cvllm_jax.responses.types.tools import (
    AllowedTools,
    CustomTool,
    FunctionTool,
    HostedMcpTool,
    NamespaceTool,
    OtherTool,
    Tool,
    ToolChoice,
)

__all__ = ["EXTENSIONS", "ConversationReference", "Includable", "Metadata", "ReasoningConfig", "ResponseRequest"]

type Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""What a response may carry beside what it always carries. What it does not have is not there."""

#: Fields of chat completions that responses do not have at OpenAI.
EXTENSIONS = (
    "top_k", "min_p", "repetition_penalty", "seed", "logit_bias", "min_tokens", "stop", "ignore_eos",
    "chat_template_kwargs",
)  # fmt: skip

type _Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
type _Summary = Literal["auto", "concise", "detailed"]
type _Tier = Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"]
type _Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


class ReasoningConfig(BaseModel):
    model_config = STRICT

    effort: _Effort | None = None
    """Given to the chat template; templates that do not know it ignore it."""
    summary: _Summary | None = None
    """Accepted; reasoning is shown as it is."""
    generate_summary: _Summary | None = optional()


class ConversationReference(BaseModel):
    model_config = STRICT

    id: str


def _check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    if len(metadata) > 16:
        raise PydanticCustomError("metadata", "expected at most 16 pairs, but got {count}", {"count": len(metadata)})
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512:
            raise PydanticCustomError("metadata", "expected keys of at most 64 and values of at most 512 characters")
    return metadata


type Metadata = Annotated[dict[str, str], AfterValidator(_check_metadata)]


class ResponseRequest(BaseModel):
    """A request for a response.

    Fields that this version does not do are listed too, so that a request which needs them is refused instead of
    being answered without them. Unknown names, and tools of unknown kinds, are ignored and logged once.
    """

    model_config = OPEN

    model: str
    input: str | list[Item] | None = None
    """A string is the user's message."""
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationReference | None = None

    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    """Calls that this server runs, at most. Functions are not counted."""
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: list[Includable] | None = None

    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    truncation: Literal["auto", "disabled"] | None = None

    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: Metadata | None = None
    service_tier: _Tier | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    user: str | None = None

    top_k: Annotated[int, Field(ge=-1)] | None = None
    """This and the following are extensions; they are what chat completions have."""
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop: str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=4)] | None = None
    ignore_eos: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    prompt: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    context_management: list[dict[str, Any]] | None = None

    @classmethod
    def parse(cls, data: Any, *, strict: bool = False) -> Self:
        """A decoded JSON body to a request; raises RequestError that names the field at fault.

        ``strict`` refuses what is otherwise ignored: unknown names, tools of other kinds, images and files.
        """
        _refuse_surrogates(data)
        if isinstance(data, dict) and "model" not in data:
            raise RequestError("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")
        try:
            request = cls.model_validate(data)
        except ValidationError as error:
            raise describe_error(error, data) from None
        request._refuse_unsupported()
        request._refuse_contradictions()
        if strict:
            request._refuse_ignored()
        else:
            log_unknown_names((*(request.model_extra or ()), *request._ignored_tools()))
        return request

    @property
    def items(self) -> list[Item]:
        """The input as items."""
        if isinstance(self.input, str):
            return [MessageItem(role="user", content=[InputText(text=self.input)])]
        return self.input or []

    @property
    def function_tools(self) -> list[FunctionTool]:
        return [tool for tool in self.tools or () if isinstance(tool, FunctionTool)]

    @property
    def custom_tools(self) -> list[CustomTool]:
        return [tool for tool in self.tools or () if isinstance(tool, CustomTool)]

    @property
    def mcp_tools(self) -> list[HostedMcpTool]:
        return [tool for tool in self.tools or () if isinstance(tool, HostedMcpTool)]

    @property
    def namespaces(self) -> list[NamespaceTool]:
        return [tool for tool in self.tools or () if isinstance(tool, NamespaceTool)]

    @property
    def conversation_id(self) -> str | None:
        return self.conversation.id if isinstance(self.conversation, ConversationReference) else self.conversation

    def includes(self, what: Includable) -> bool:
        return what in (self.include or ())

    def _ignored_tools(self) -> Iterator[str]:
        """Kinds of tools that are ignored, as a log line names them."""
        for tool in self.tools or ():
            for each in [tool, *(tool.tools if isinstance(tool, NamespaceTool) else ())]:
                if isinstance(each, OtherTool):
                    yield f"tools[].type {each.type}"

    def _refuse_unsupported(self) -> None:
        for field in ("prompt", "moderation", "context_management"):
            if getattr(self, field):
                raise RequestError(
                    f"'{field}' is not supported; leave it out.", param=field, code="unsupported_parameter"
                )
        for index, tool in enumerate(self.tools or ()):
            for field in ("connector_id", "tunnel_id", "defer_loading"):
                if getattr(tool, field, None):
                    param = f"tools[{index}].{field}"
                    raise RequestError(
                        f"'{param}' is not supported; leave it out.", param=param, code="unsupported_parameter"
                    )

    def _refuse_contradictions(self) -> None:
        if self.previous_response_id is not None and self.conversation is not None:
            raise RequestError(
                "Mutually exclusive parameters: 'previous_response_id' and 'conversation'. "
                "Ensure you are only providing one of them.",
                param="previous_response_id",
                code="mutually_exclusive_parameters",
            )
        if self.input is None and self.previous_response_id is None and self.conversation is None:
            raise RequestError("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
        labels = [tool.server_label for tool in self.mcp_tools]
        if repeated := next((label for label in labels if labels.count(label) > 1), None):
            raise RequestError(
                f"Invalid 'tools': there is another MCP server labelled '{repeated}'; labels must be unique.",
                param="tools",
                code="invalid_value",
            )

    def _refuse_ignored(self) -> None:
        for name in self.model_extra or ():
            raise RequestError(f"Unknown parameter: '{name[:100]}'.", param=name[:100], code="unknown_parameter")
        for index, tool in enumerate(self.tools or ()):
            _refuse_other(tool, f"tools[{index}]")
        if isinstance(self.tool_choice, AllowedTools):
            for index, choice in enumerate(self.tool_choice.tools):
                _refuse_other(choice, f"tool_choice.tools[{index}]")
        for index, item in enumerate(self.items):
            for field in ("content", "output"):
                parts = getattr(item, field, None)
                for place, part in enumerate(parts if isinstance(parts, list) else ()):
                    if part.type in ("input_image", "input_file", "input_audio", "input_video"):
                        param = f"input[{index}].{field}[{place}].type"
                        raise RequestError(
                            f"Invalid value: '{part.type}'. This model reads text only: '{param}' must be of type "
                            "'input_text'.",
                            param=param,
                            code="invalid_value",
                        )


def _refuse_surrogates(data: Any) -> None:
    """Halves of surrogate pairs come from escapes in JSON. They are no characters, and no answer could repeat them."""
    try:
        json.dumps(data, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise RequestError(
            f"Invalid body: it holds the lone surrogate U+{code:04X}, which is no character.", code="invalid_value"
        ) from None


def _refuse_other(tool: object, param: str) -> None:
    if isinstance(tool, NamespaceTool | OtherTool):
        raise RequestError(
            f"Invalid value: '{tool.type[:100]}'. Supported values are: 'function', 'custom', 'mcp'.",
            param=f"{param}.type",
            code="invalid_value",
        )
