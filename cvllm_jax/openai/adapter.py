"""OpenAI's chat completions over an InferenceEngine, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cvllm_jax.errors import ConfigError, EngineStoppedError, GenerationError, QueueFullError
from cvllm_jax.openai.chunks import Completion, system_fingerprint
from cvllm_jax.openai.prompt import render_prompt
from cvllm_jax.openai.sampling import SAMPLING_DEFAULT_NAMES, check_length, generation_params, request_error
from cvllm_jax.openai.streaming import ChatCompletionStream, sync_chunks
from cvllm_jax.openai.types import ChatCompletionChunk, ChatCompletionRequest, ChatCompletionResponse
from cvllm_jax.openai.unsupported import log_unknown_names, refuse_unsupported
from cvllm_jax.params import GenerationOutput, GenerationParams

if TYPE_CHECKING:
    from cvllm_jax.engine.engine import InferenceEngine
    from cvllm_jax.engine.stream import GenerationStream, SyncGenerationStream

__all__ = ["AdapterConfig", "OpenAIAdapter", "model_sampling_defaults"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """How an adapter fills in what requests leave open."""

    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults for temperature, top_p, top_k, min_p and repetition_penalty. Empty: those of OpenAI's
    API (temperature 1, nothing cut off). :func:`model_sampling_defaults` gives the model's own."""

    def __post_init__(self) -> None:
        for name in self.sampling_defaults:
            if name not in SAMPLING_DEFAULT_NAMES:
                raise ConfigError(
                    f"unknown sampling default {name!r}; choose from {', '.join(SAMPLING_DEFAULT_NAMES)}",
                    param="sampling_defaults",
                )
        try:
            GenerationParams(**self.sampling_defaults)
        except GenerationError as error:
            raise ConfigError(f"sampling defaults: {error}", param=error.param) from error


def model_sampling_defaults(engine: InferenceEngine) -> dict[str, Any]:
    """What the files of the engine's model recommend, as ``AdapterConfig.sampling_defaults``."""
    recommended = engine.model_info().generation_defaults
    defaults = {name: recommended[name] for name in SAMPLING_DEFAULT_NAMES if recommended.get(name) is not None}
    if defaults.get("top_k") == 0:  # generation_config.json's way to turn it off
        del defaults["top_k"]
    return defaults


class OpenAIAdapter:
    """Answers OpenAI-style requests with an engine.

    One adapter serves any number of concurrent callers, from any thread or task. The request's
    ``model`` is echoed, whatever it is. Errors: RequestError (a GenerationError) for requests that
    cannot be served as written, QueueFullError when too many wait, TokenizationError when the chat
    template refuses the messages, GenerationFailedError when the engine fails underway and
    EngineStoppedError when it cannot go on.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine
        self._config = AdapterConfig()
        self._fingerprint = system_fingerprint(engine.model_info())

    @classmethod
    def with_config(cls, engine: InferenceEngine, config: AdapterConfig) -> Self:
        adapter = cls(engine)
        adapter._config = config
        return adapter

    @property
    def engine(self) -> InferenceEngine:
        """The engine below, for operations of its own."""
        return self._engine

    async def chat_completion(self, request: ChatCompletionRequest) -> ChatCompletionResponse:
        """Answer a conversation. Cancelling the awaiting task ends the request and frees its pages."""
        prompt, params = await asyncio.to_thread(self._prepare, request)
        try:
            outputs = await self._generate_all(prompt, params)
        except GenerationError as error:
            raise self._refusal(error, request) from error
        return self._completion(request).response(outputs)

    def chat_completion_sync(self, request: ChatCompletionRequest) -> ChatCompletionResponse:
        """:meth:`chat_completion` for callers without an event loop."""
        streams = self._start_sync(request)
        try:
            outputs = [stream.finish() for stream in streams]
        finally:
            for stream in streams:
                stream.cancel()
        return self._completion(request).response(outputs)

    def chat_completion_stream(self, request: ChatCompletionRequest) -> ChatCompletionStream:
        """Answer a conversation chunk by chunk; both ``await`` and ``async for`` work on the result."""

        async def start() -> tuple[Completion, Sequence[GenerationStream]]:
            prompt, params = await asyncio.to_thread(self._prepare, request)
            streams: list[GenerationStream] = []
            try:
                for choice in params:
                    streams.append(await self._engine.generate_stream(prompt, choice))
            except BaseException as error:
                for stream in streams:
                    stream.cancel()
                if isinstance(error, GenerationError):
                    raise self._refusal(error, request) from error
                raise
            return self._completion(request), streams

        return ChatCompletionStream(start)

    def chat_completion_stream_sync(self, request: ChatCompletionRequest) -> Generator[ChatCompletionChunk]:
        """:meth:`chat_completion_stream` for callers without an event loop.

        What is wrong with the request is raised here, before the first chunk is taken.
        """
        return sync_chunks(self._completion(request), self._start_sync(request))

    def close(self) -> None:
        """Close the engine too."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _prepare(self, request: ChatCompletionRequest) -> tuple[list[int], list[GenerationParams]]:
        """Everything about a request that can be refused before the engine sees it."""
        log_unknown_names(request.model_extra or ())
        refuse_unsupported(request)
        params = generation_params(request, self._config.sampling_defaults)
        prompt = render_prompt(self._engine.chat_template, request)
        check_length(request, len(prompt), self._engine.model_info().max_sequence_length)
        return prompt, params

    async def _generate_all(self, prompt: list[int], params: list[GenerationParams]) -> list[GenerationOutput]:
        if len(params) == 1:
            return [await self._engine.generate(prompt, params[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._engine.generate(prompt, choice)) for choice in params]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _start_sync(self, request: ChatCompletionRequest) -> list[SyncGenerationStream]:
        prompt, params = self._prepare(request)
        streams: list[SyncGenerationStream] = []
        try:
            for choice in params:
                streams.append(self._engine.generate_stream_sync(prompt, choice))
        except GenerationError as error:
            for stream in streams:
                stream.cancel()
            raise self._refusal(error, request) from error
        return streams

    def _completion(self, request: ChatCompletionRequest) -> Completion:
        options = request.stream_options
        return Completion(
            model=request.model,
            tokenizer=self._engine.tokenizer,
            fingerprint=self._fingerprint,
            logprobs=bool(request.logprobs),
            include_usage=bool(options and options.include_usage),
        )

    @staticmethod
    def _refusal(error: GenerationError, request: ChatCompletionRequest) -> GenerationError:
        return error if isinstance(error, QueueFullError | EngineStoppedError) else request_error(error, request)
