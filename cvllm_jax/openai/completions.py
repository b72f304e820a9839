"""OpenAI's completions over an InferenceEngine: a text, or many, and how they go on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cvllm_jax.errors import EngineStoppedError, GenerationError, QueueFullError
from cvllm_jax.openai.chunk_stream import ChunkStream, cancel_all
from cvllm_jax.openai.completions_answer import Answer, Prompt, Work, chunks, sync_chunks
from cvllm_jax.openai.completions_types import CompletionChunk, CompletionRequest, CompletionResponse
from cvllm_jax.openai.errors import GenerationFailedError, RequestError
from cvllm_jax.openai.sampling import generation_params, request_error
from cvllm_jax.openai.unsupported import log_unknown_names
from cvllm_jax.params import GenerationParams

if TYPE_CHECKING:
    from cvllm_jax.engine.engine import InferenceEngine
    from cvllm_jax.engine.scoring import PromptScorer
    from cvllm_jax.engine.stream import GenerationStream, SyncGenerationStream

__all__ = ["CompletionStream", "Completions"]

DEFAULT_MAX_TOKENS = 16
MAX_CHOICES = 2048

type CompletionStream = ChunkStream[CompletionChunk]


class Completions:
    """Answers completion requests with an engine. Errors are those of :class:`OpenAIAdapter`."""

    def __init__(self, engine: InferenceEngine, defaults: Mapping[str, Any], fingerprint: str) -> None:
        self._engine, self._defaults, self._fingerprint = engine, defaults, fingerprint

    async def create(self, request: CompletionRequest) -> CompletionResponse:
        """Cancelling the awaiting task ends the request and frees its pages."""
        work = await self._scored(await asyncio.to_thread(self._prepare, request))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._engine.generate(p.tokens, params)) for p, params in work.jobs()]
        except ExceptionGroup as errors:
            raise _refusal(errors.exceptions[0], request) from None
        return self._answer(work).response([task.result() for task in tasks])

    def create_sync(self, request: CompletionRequest) -> CompletionResponse:
        """:meth:`create` for callers without an event loop."""
        work = self._scored_sync(self._prepare(request))
        streams = self._start_sync(work)
        try:
            outputs = [stream.finish() for stream in streams]
        finally:
            cancel_all(streams)
        return self._answer(work).response(outputs)

    def stream(self, request: CompletionRequest) -> CompletionStream:
        """Chunk by chunk; both ``await`` and ``async for`` work on the result."""

        async def start() -> tuple[AsyncGenerator[CompletionChunk, None], Sequence[GenerationStream]]:
            work = await self._scored(await asyncio.to_thread(self._prepare, request))
            streams: list[GenerationStream] = []
            try:
                for prompt, params in work.jobs():
                    streams.append(await self._engine.generate_stream(prompt.tokens, params))
            except BaseException as error:
                cancel_all(streams)
                if isinstance(error, GenerationError):
                    raise _refusal(error, request) from error
                raise
            return chunks(self._answer(work), streams), streams

        return ChunkStream(start)

    def stream_sync(self, request: CompletionRequest) -> Generator[CompletionChunk]:
        """:meth:`stream` for callers without an event loop; what is wrong with the request is raised here."""
        work = self._scored_sync(self._prepare(request))
        return sync_chunks(self._answer(work), self._start_sync(work))

    def _prepare(self, request: CompletionRequest) -> Work:
        """Everything about a request that can be refused before the engine sees it."""
        log_unknown_names(request.model_extra or ())
        if (info := self._engine.model_info()).kind != "causal":
            raise RequestError(f"The model '{info.name}' gives embeddings and generates no text.", param="model")
        _refuse_unsupported(request)
        sampling = generation_params(
            request.sampling(), self._defaults, vocab_size=self._engine.model_info().vocab_size
        )
        given = request.prompt if isinstance(request.prompt, list) else [request.prompt]
        prompts = [given] if isinstance(given[0], int) else given
        several = prompts is given and isinstance(request.prompt, list)
        named = [(f"prompt[{index}]" if several else "prompt", prompt) for index, prompt in enumerate(prompts)]
        if len(prompts) * len(sampling) > MAX_CHOICES:
            raise RequestError(
                f"Invalid 'n': {len(prompts)} prompts with {len(sampling)} choices each are more than {MAX_CHOICES}.",
                param="n",
                code="invalid_value",
            )
        tokens = [self._tokens(prompt, name) for name, prompt in named]
        limits = [self._limit(request, len(ids), name) for (name, _), ids in zip(named, tokens)]
        made = [self._prompt(prompt, ids) for prompt, ids in zip(prompts, tokens)]
        params: list[list[GenerationParams]] = []
        if request.max_tokens != 0:
            try:
                params = [[dataclasses.replace(choice, max_tokens=limit) for choice in sampling] for limit in limits]
            except GenerationError as error:
                raise _refusal(error, request) from error
        return Work(request=request, prompts=made, params=params)

    def _tokens(self, prompt: Any, name: str) -> list[int]:
        tokens: list[int] = self._engine.tokenize(prompt) if isinstance(prompt, str) else prompt
        if not tokens:
            raise RequestError(f"Invalid '{name}': it is empty, and this model begins no text by itself.", param=name)
        size = self._engine.model_info().vocab_size
        if (highest := max(tokens)) >= size:
            raise RequestError(
                f"Invalid '{name}': there is no token {highest}; this model's ids are 0 to {size - 1}.",
                param=name,
                code="invalid_value",
            )
        return tokens

    def _prompt(self, prompt: Any, tokens: list[int]) -> Prompt:
        if isinstance(prompt, str):
            return Prompt(tokens=tokens, text=prompt, shows_control=False)
        text = self._engine.tokenizer.decode(tokens, skip_special=False)
        return Prompt(tokens=tokens, text=text, shows_control=True)

    def _limit(self, request: CompletionRequest, length: int, name: str) -> int:
        """Tokens to generate after a prompt of this length."""
        limit, wanted = self._engine.model_info().max_sequence_length, request.max_tokens
        least = 0 if wanted == 0 else 1
        if length + (least if wanted is None else wanted) <= limit:
            return min(DEFAULT_MAX_TOKENS, limit - length) if wanted is None else wanted
        raise RequestError(
            f"This model's maximum context length is {limit} tokens, but {length + (wanted or least)} were requested: "
            f"{length} in the prompt and {wanted or least} for the completion.",
            param=name if length + least > limit else "max_tokens",
            code="context_length_exceeded",
        )

    @cached_property
    def _scorer(self) -> PromptScorer:
        from cvllm_jax.engine.scoring import PromptScorer

        return PromptScorer(self._engine)

    async def _scored(self, work: Work) -> Work:
        if not work.wants_scores:
            return work
        top = work.request.logprobs or 0
        with _failing():
            scored = [await self._scorer.score(prompt.tokens, top) for prompt in work.prompts]
        return dataclasses.replace(work, scored=scored)

    def _scored_sync(self, work: Work) -> Work:
        if not work.wants_scores:
            return work
        top = work.request.logprobs or 0
        with _failing():
            scored = [self._scorer.score_sync(prompt.tokens, top) for prompt in work.prompts]
        return dataclasses.replace(work, scored=scored)

    def _start_sync(self, work: Work) -> list[SyncGenerationStream]:
        streams: list[SyncGenerationStream] = []
        try:
            for prompt, params in work.jobs():
                streams.append(self._engine.generate_stream_sync(prompt.tokens, params))
        except GenerationError as error:
            cancel_all(streams)
            raise _refusal(error, work.request) from error
        return streams

    def _answer(self, work: Work) -> Answer:
        return Answer(work=work, tokenizer=self._engine.tokenizer, fingerprint=self._fingerprint)


# field -> the values that ask for nothing, besides None, and what to do instead
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), "this model goes on with a text and fills no gap"),
    "response_format": (({"type": "text"},), "use chat completions"),
    "structured_outputs": ((), "use chat completions"),
}


def _refuse_unsupported(request: CompletionRequest) -> None:
    for name, (neutral, advice) in _UNSUPPORTED.items():
        value = getattr(request, name)
        if value is not None and value not in neutral:
            raise RequestError(f"'{name}' is not supported here: {advice}.", param=name, code="unsupported_parameter")
    best_of, n = request.best_of or 0, request.n or 1
    if 0 < best_of < n:
        raise RequestError(
            "You requested that the server return more choices than it will generate (HINT: you must set 'n' "
            f"(currently {n}) to be at most 'best_of' (currently {best_of}), or omit either parameter if you don't "
            "specifically want to use them.)",
            param="best_of",
        )
    if best_of > n:
        raise RequestError(
            "'best_of' is not supported here: ask for 'n' choices with 'logprobs' and choose among them.",
            param="best_of",
            code="unsupported_parameter",
        )


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """The prompts have been checked: what scoring says of them is a failure of the engine's."""
    try:
        yield
    except GenerationError as error:
        raise GenerationFailedError(str(error)) from error


def _refusal(error: BaseException, request: CompletionRequest) -> BaseException:
    """The engine's error with the name that the request uses for the field."""
    if not isinstance(error, GenerationError) or isinstance(error, QueueFullError | EngineStoppedError):
        return error
    return request_error(error, request.sampling())
