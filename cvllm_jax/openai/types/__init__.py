"""Wire types of OpenAI's chat completions, as pydantic models.

Names and nesting follow OpenAI's OpenAPI description 2.3.0. Requests are strict: a number in
quotes is not a number. Keys that OpenAI leaves out when they have no value are left out here too;
keys that it sends as null are sent as null.
"""

from cvllm_jax.openai.types.formats import (
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    ResponseFormat,
    StructuredOutputs,
    TextFormat,
)
from cvllm_jax.openai.types.messages import ContentPart, FunctionCall, Message, ToolCall
from cvllm_jax.openai.types.request import ChatCompletionRequest, StreamOptions
from cvllm_jax.openai.types.response import (
    ChatChoice,
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChoiceDelta,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionTokensDetails,
    FinishReasonName,
    FunctionCallDelta,
    PromptTokensDetails,
    TokenLogprob,
    ToolCallDelta,
    TopTokenLogprob,
    Usage,
    merge_tool_call_delta,
)
from cvllm_jax.openai.types.tools import AllowedTools, FunctionDefinition, TextFunction, Tool, ToolChoice, ToolReference

__all__ = [
    "AllowedTools",
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
    "FunctionCall",
    "FunctionCallDelta",
    "FunctionDefinition",
    "JsonObjectFormat",
    "JsonSchema",
    "JsonSchemaFormat",
    "Message",
    "PromptTokensDetails",
    "ResponseFormat",
    "StreamOptions",
    "StructuredOutputs",
    "TextFormat",
    "TextFunction",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "ToolReference",
    "TopTokenLogprob",
    "Usage",
    "merge_tool_call_delta",
]
