"""OpenAI's chat completions over an InferenceEngine, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from cvllm_jax.closing import AsyncClosing
from cvllm_jax.errors import ConfigError, EngineStoppedError, GenerationError, QueueFullError
from cvllm_jax.grammar import GrammarError
from cvllm_jax.openai.chunks import Completion, system_fingerprint
from cvllm_jax.openai.completions import Completions, CompletionStream
from cvllm_jax.openai.completions_types import CompletionChunk, CompletionRequest, CompletionResponse
from cvllm_jax.openai.constraints import Constraint, constrain
from cvllm_jax.openai.embeddings import create_embeddings, create_embeddings_sync
from cvllm_jax.openai.embeddings_types import EmbeddingRequest, EmbeddingResponse
from cvllm_jax.openai.model_format import ModelFormat
from cvllm_jax.openai.prompt import check_tool_turns, render_prompt
from cvllm_jax.openai.reasoning import get_reasoning_parser
from cvllm_jax.openai.sampling import SAMPLING_DEFAULT_NAMES, check_length, generation_params, request_error
from cvllm_jax.openai.streaming import ChatCompletionStream, output_of, sync_chunks, sync_outputs
from cvllm_jax.openai.tool_parsers import get_tool_parser
from cvllm_jax.openai.tool_plan import plan_tools
from cvllm_jax.openai.types import ChatCompletionChunk, ChatCompletionRequest, ChatCompletionResponse
from cvllm_jax.openai.unsupported import log_unknown_names, refuse_unsupported
from cvllm_jax.params import GenerationOutput, GenerationParams

if TYPE_CHECKING:
    from cvllm_jax.engine.engine import InferenceEngine
    from cvllm_jax.engine.opening import AnyEngine
    from cvllm_jax.engine.stream import GenerationStream, SyncGenerationStream

__all__ = ["AdapterConfig", "OpenAIAdapter", "model_sampling_defaults"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """How an adapter fills in what requests leave open."""

    sampling_defaults: Mapping[str, Any] | None = None
    """Defaults for temperature, top_p, top_k, min_p and repetition_penalty. None: what the model's own files recommend,
    as the server does (:func:`model_sampling_defaults`); ``{}``: those of OpenAI, temperature 1 and nothing cut off."""
    tool_parser: str = "auto"
    """The format of the model's tool calls, a name of ``TOOL_PARSERS``. "auto" finds it by the chat template; "none"
    finds no calls."""
    reasoning_parser: str = "auto"
    """The markup of its reasoning, a name of ``REASONING_PARSERS``, "auto" or "none"."""

    def __post_init__(self) -> None:
        for name in self.sampling_defaults or ():
            if name not in SAMPLING_DEFAULT_NAMES:
                raise ConfigError(
                    f"unknown sampling default {name!r}; choose from {', '.join(SAMPLING_DEFAULT_NAMES)}",
                    param="sampling_defaults",
                )
        if self.tool_parser not in ("auto", "none", "response_template"):
            get_tool_parser(self.tool_parser)
        if self.reasoning_parser != "none":
            get_reasoning_parser(self.reasoning_parser)
        try:
            GenerationParams(**(self.sampling_defaults or {}))
        except GenerationError as error:
            raise ConfigError(f"sampling defaults: {error}", param=error.param) from error


def model_sampling_defaults(engine: AnyEngine) -> dict[str, Any]:
    """What the files of the engine's model recommend, as ``AdapterConfig.sampling_defaults``."""
    recommended = engine.model_info().generation_defaults
    defaults = {name: recommended[name] for name in SAMPLING_DEFAULT_NAMES if recommended.get(name) is not None}
    if defaults.get("top_k") == 0:  # generation_config.json's way to turn it off
        del defaults["top_k"]
    return defaults


class OpenAIAdapter(AsyncClosing):
    """Answers OpenAI-style requests with an engine.

    One adapter serves any number of concurrent callers, from any thread or task. The request's
    ``model`` is echoed, whatever it is. Errors: RequestError (a GenerationError) for requests that
    cannot be served as written, QueueFullError when too many wait, TokenizationError when the chat
    template refuses the messages, GenerationFailedError when the engine fails underway and
    EngineStoppedError when it cannot go on.
    """

    def __init__(self, engine: AnyEngine) -> None:
        self._configure(engine, AdapterConfig())

    @classmethod
    def with_config(cls, engine: AnyEngine, config: AdapterConfig) -> Self:
        """Raises ConfigError for a parser that the model's files do not provide."""
        adapter = cls.__new__(cls)
        adapter._configure(engine, config)
        return adapter

    def _configure(self, engine: AnyEngine, config: AdapterConfig) -> None:
        # An embedding engine has no chat template, which chats are refused for, and completions ask for its kind.
        self._engine: InferenceEngine = engine  # type: ignore[assignment]
        given = config.sampling_defaults
        self._sampling_defaults = given if given is not None else model_sampling_defaults(engine)
        self._fingerprint = system_fingerprint(engine.model_info())
        self._format = ModelFormat(self._engine, config.tool_parser, config.reasoning_parser)

    @property
    def engine(self) -> InferenceEngine:
        """The engine below, for operations of its own."""
        return self._engine

    @property
    def engine_mut(self) -> InferenceEngine:
        """The same engine, under the name that the API has for it in Rust."""
        return self._engine

    async def chat_completion(self, request: ChatCompletionRequest) -> ChatCompletionResponse:
        """Answer a conversation. Cancelling the awaiting task ends the request and frees its pages."""
        prepared = await asyncio.to_thread(self._prepare, request)
        try:
            outputs = await self._generate_all(prepared)
        except GenerationError as error:
            raise prepared.refusal(error, request) from error
        return prepared.completion.response(outputs)

    def chat_completion_sync(self, request: ChatCompletionRequest) -> ChatCompletionResponse:
        """:meth:`chat_completion` for callers without an event loop."""
        prepared = self._prepare(request)
        streams = self._start_sync(prepared, request)
        try:
            if prepared.completion.plan.ends_with_call:
                outputs = sync_outputs(prepared.completion, streams)
            else:
                outputs = [stream.finish() for stream in streams]
        finally:
            for stream in streams:
                stream.cancel()
        return prepared.completion.response(outputs)

    def chat_completion_stream(self, request: ChatCompletionRequest) -> ChatCompletionStream:
        """Answer a conversation chunk by chunk; both ``await`` and ``async for`` work on the result."""

        async def start() -> tuple[Completion, Sequence[GenerationStream]]:
            prepared = await asyncio.to_thread(self._prepare, request)
            streams: list[GenerationStream] = []
            try:
                for choice in prepared.params:
                    streams.append(await self._engine.generate_stream(prepared.prompt, choice))
            except BaseException as error:
                for stream in streams:
                    stream.cancel()
                if isinstance(error, GenerationError):
                    raise prepared.refusal(error, request) from error
                raise
            return prepared.completion, streams

        return ChatCompletionStream(start)

    def chat_completion_stream_sync(self, request: ChatCompletionRequest) -> Generator[ChatCompletionChunk]:
        """:meth:`chat_completion_stream` for callers without an event loop.

        What is wrong with the request is raised here, before the first chunk is taken.
        """
        prepared = self._prepare(request)
        return sync_chunks(prepared.completion, self._start_sync(prepared, request))

    async def prompt_tokens(self, request: ChatCompletionRequest) -> int:
        """How many tokens the prompt of a conversation has, with the tools that the model would see."""
        return await asyncio.to_thread(self.prompt_tokens_sync, request)

    def prompt_tokens_sync(self, request: ChatCompletionRequest) -> int:
        """:meth:`prompt_tokens` for callers without an event loop."""
        refuse_unsupported(request)
        plan = plan_tools(request, self._format)
        return len(render_prompt(self._engine.chat_template, request, plan.prompt_tools()))

    async def completion(self, request: CompletionRequest) -> CompletionResponse:
        """Go on with a text, or several. Cancelling the awaiting task ends the request and frees its pages."""
        return await self._completions.create(request)

    def completion_sync(self, request: CompletionRequest) -> CompletionResponse:
        """:meth:`completion` for callers without an event loop."""
        return self._completions.create_sync(request)

    def completion_stream(self, request: CompletionRequest) -> CompletionStream:
        """Go on with a text chunk by chunk; both ``await`` and ``async for`` work on the result."""
        return self._completions.stream(request)

    def completion_stream_sync(self, request: CompletionRequest) -> Generator[CompletionChunk]:
        """:meth:`completion_stream` for callers without an event loop."""
        return self._completions.stream_sync(request)

    async def embeddings(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """The vectors of texts; for an adapter over an EmbeddingEngine."""
        return await create_embeddings(self._engine, request)

    def embeddings_sync(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """:meth:`embeddings` for callers without an event loop."""
        return create_embeddings_sync(self._engine, request)

    @cached_property
    def _completions(self) -> Completions:
        return Completions(self._engine, self._sampling_defaults, self._fingerprint)

    def close(self) -> None:
        """Close the engine too."""
        self._engine.close()

    def _prepare(self, request: ChatCompletionRequest) -> _Prepared:
        """Everything about a request that can be refused before the engine sees it."""
        log_unknown_names(request.model_extra or ())
        refuse_unsupported(request)
        check_tool_turns(request.messages)
        plan = plan_tools(request, self._format)
        info = self._engine.model_info()
        prompt = render_prompt(self._engine.chat_template, request, plan.prompt_tools())
        check_length(request, len(prompt), info.max_sequence_length)
        prompt_end = self._format.prompt_end(prompt)
        constraint = constrain(request, plan, self._format, prompt_end)
        if constraint is not None:
            try:  # here and not where the engine would, in the event loop
                self._engine.compile_grammar(constraint.grammar)
            except GrammarError as error:
                raise constraint.refusal(error) from error
        keeps_markup = self._format.needs_control_tokens(tools=bool(plan.callable))
        # Past its end an answer goes on only to measure, and the end token is no markup.
        skip_special_tokens = bool(request.ignore_eos) or not keeps_markup
        params = generation_params(
            request,
            self._sampling_defaults,
            vocab_size=info.vocab_size,
            grammar=constraint.grammar if constraint is not None else None,
            skip_special_tokens=skip_special_tokens,
        )
        options = request.stream_options
        completion = Completion(
            model=request.model or info.name,
            tokenizer=self._engine.tokenizer,
            fingerprint=self._fingerprint,
            format=self._format,
            plan=plan,
            constraint=constraint,
            prompt_end=prompt_end,
            skip_special_tokens=skip_special_tokens,
            logprobs=bool(request.logprobs),
            include_usage=bool(options and options.include_usage),
        )
        return _Prepared(prompt=prompt, params=params, completion=completion, constraint=constraint)

    async def _generate_all(self, prepared: _Prepared) -> list[GenerationOutput]:
        if len(prepared.params) == 1:
            return [await self._generate(prepared, prepared.params[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._generate(prepared, choice)) for choice in prepared.params]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _generate(self, prepared: _Prepared, choice: GenerationParams) -> GenerationOutput:
        if not prepared.completion.plan.ends_with_call:  # nobody has to look at the text before it is whole
            return await self._engine.generate(prepared.prompt, choice)
        stream = self._engine.generate_stream(prepared.prompt, choice)
        return await output_of(stream, prepared.completion.reader())

    def _start_sync(self, prepared: _Prepared, request: ChatCompletionRequest) -> list[SyncGenerationStream]:
        streams: list[SyncGenerationStream] = []
        try:
            for choice in prepared.params:
                streams.append(self._engine.generate_stream_sync(prepared.prompt, choice))
        except GenerationError as error:
            for stream in streams:
                stream.cancel()
            raise prepared.refusal(error, request) from error
        return streams


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A request that the engine can take."""

    prompt: list[int]
    params: list[GenerationParams]
    """One a choice."""
    completion: Completion
    constraint: Constraint | None

    def refusal(self, error: GenerationError, request: ChatCompletionRequest) -> GenerationError:
        """The engine's error in the words of the request."""
        if isinstance(error, QueueFullError | EngineStoppedError):
            return error
        if isinstance(error, GrammarError) and self.constraint is not None:
            return self.constraint.refusal(error)
        return request_error(error, request)
