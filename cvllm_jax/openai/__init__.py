"""OpenAI's API as a library: wire types and the adapter that answers them with an engine."""

from cvllm_jax.openai.adapter import AdapterConfig, OpenAIAdapter, model_sampling_defaults
from cvllm_jax.openai.errors import GenerationFailedError, RequestError
from cvllm_jax.openai.reasoning import get_reasoning_parser
from cvllm_jax.openai.streaming import ChatCompletionStream
from cvllm_jax.openai.tool_parsers import detect_tool_parser, get_tool_parser
from cvllm_jax.openai.types import (
    ChatChoice,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChoiceDelta,
    ChoiceLogprobs,
    ChunkChoice,
    ContentPart,
    Message,
    StreamOptions,
    TokenLogprob,
    TopTokenLogprob,
    Usage,
)

__all__ = [
    "AdapterConfig",
    "ChatChoice",
    "ChatCompletionChunk",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "ChatCompletionStream",
    "ChoiceDelta",
    "ChoiceLogprobs",
    "ChunkChoice",
    "ContentPart",
    "GenerationFailedError",
    "Message",
    "OpenAIAdapter",
    "RequestError",
    "StreamOptions",
    "TokenLogprob",
    "TopTokenLogprob",
    "Usage",
    "detect_tool_parser",
    "get_reasoning_parser",
    "get_tool_parser",
    "model_sampling_defaults",
]
