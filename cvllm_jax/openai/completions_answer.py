"""Completions as choices, chunks and usage."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cvllm_jax.openai.chunk_stream import cancel_all, merged
from cvllm_jax.openai.chunks import finish_reason_name
from cvllm_jax.openai.completions_logprobs import LogprobsWriter
from cvllm_jax.openai.completions_types import (
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
)
from cvllm_jax.openai.types import PromptTokensDetails, Usage
from cvllm_jax.params import FinishReason, GenerationOutput, GenerationParams, TokenUpdate

if TYPE_CHECKING:
    from cvllm_jax.engine.scoring import PromptLogprobs
    from cvllm_jax.engine.stream import GenerationStream, SyncGenerationStream
    from cvllm_jax.text import Tokenizer

__all__ = ["Answer", "Prompt", "Work", "chunks", "sync_chunks"]

#: The output of a choice that generates no token.
NOTHING = GenerationOutput(tokens=[], text="", finish_reason=FinishReason.Length, logprobs=[], top_logprobs=[])


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt that the engine can take."""

    tokens: list[int]
    text: str
    """What ``echo`` puts before the answer."""
    shows_control: bool
    """Whether control tokens are part of ``text``: those among ids that the client sent are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A request that the engine can take."""

    request: CompletionRequest
    prompts: list[Prompt]
    params: list[list[GenerationParams]]
    """For each prompt those of its choices; none if nothing is to be generated."""
    scored: list[PromptLogprobs] = field(default_factory=list)
    """Of each prompt, where they are asked for."""

    @property
    def wants_scores(self) -> bool:
        return bool(self.request.echo) and self.request.logprobs is not None

    @property
    def choices(self) -> int:
        """Choices of a prompt."""
        return self.request.n or 1

    def jobs(self) -> Iterator[tuple[Prompt, GenerationParams]]:
        """What the engine is to do, a choice each, in the order of their indices."""
        for prompt, choices in zip(self.prompts, self.params, strict=bool(self.params)):
            for params in choices:
                yield prompt, params


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What all parts of one answer share, and how its parts are made."""

    work: Work
    tokenizer: Tokenizer
    fingerprint: str
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def include_usage(self) -> bool:
        options = self.work.request.stream_options
        return bool(options and options.include_usage)

    @property
    def choices(self) -> range:
        return range(len(self.work.prompts) * self.work.choices)

    def response(self, outputs: Sequence[GenerationOutput]) -> CompletionResponse:
        outputs = outputs or [NOTHING] * len(self.choices)
        return CompletionResponse(
            id=self.id,
            created=self.created,
            model=self.work.request.model,
            system_fingerprint=self.fingerprint,
            choices=[self._choice(index, output) for index, output in enumerate(outputs)],
            usage=self._usage(outputs),
        )

    def echo_chunk(self, index: int) -> CompletionChunk | None:
        """The prompt, if it is to be repeated."""
        if not self.work.request.echo:
            return None
        return self._chunk(index, self._echo(index), self._prompt_logprobs(index))

    def token_chunk(self, index: int, update: TokenUpdate, writer: LogprobsWriter | None) -> CompletionChunk | None:
        """What one token adds, or None if it shows nothing yet."""
        logprobs = None
        if writer is not None and update.token is not None:
            logprobs = writer.write([(update.token, update.logprob, update.top_logprobs)])
        if not update.text and logprobs is None:
            return None
        return self._chunk(index, update.text, logprobs)

    def last_chunk(self, index: int, output: GenerationOutput) -> CompletionChunk:
        return self._chunk(index, "", finish_reason=finish_reason_name(output))

    def usage_chunk(self, outputs: Sequence[GenerationOutput]) -> CompletionChunk:
        chunk = self._chunk(0, "")
        chunk.choices, chunk.usage = [], self._usage(outputs)
        return chunk

    def writer(self, index: int) -> LogprobsWriter | None:
        """What writes the log probabilities of a choice's answer, if they are asked for."""
        if self.work.request.logprobs is None:
            return None
        return LogprobsWriter(self.tokenizer, len(self._echo(index)))

    def _echo(self, index: int) -> str:
        return self.work.prompts[index // self.work.choices].text if self.work.request.echo else ""

    def _prompt_logprobs(self, index: int) -> CompletionLogprobs | None:
        if not self.work.wants_scores:
            return None
        prompt, scored = self.work.prompts[index // self.work.choices], self.work.scored[index // self.work.choices]
        writer = LogprobsWriter(self.tokenizer, skip_special=not prompt.shows_control)
        return writer.write(zip(prompt.tokens, [None, *scored.chosen], [None, *scored.top], strict=True))

    def _choice(self, index: int, output: GenerationOutput) -> CompletionChoice:
        logprobs = None
        if (writer := self.writer(index)) is not None:
            top = output.top_logprobs or [[] for _ in output.tokens]
            logprobs = writer.write(zip(output.tokens, output.logprobs or [], top, strict=True))
            if (before := self._prompt_logprobs(index)) is not None:
                logprobs = CompletionLogprobs(
                    tokens=before.tokens + logprobs.tokens,
                    token_logprobs=before.token_logprobs + logprobs.token_logprobs,
                    top_logprobs=before.top_logprobs + logprobs.top_logprobs,
                    text_offset=before.text_offset + logprobs.text_offset,
                )
        reason = finish_reason_name(output)
        assert reason != "tool_calls"
        return CompletionChoice(
            text=self._echo(index) + output.text, index=index, logprobs=logprobs, finish_reason=reason
        )

    def _chunk(
        self, index: int, text: str, logprobs: CompletionLogprobs | None = None, finish_reason: Any = None
    ) -> CompletionChunk:
        choice = CompletionChoice(text=text, index=index, logprobs=logprobs, finish_reason=finish_reason)
        chunk = CompletionChunk(
            id=self.id,
            created=self.created,
            model=self.work.request.model,
            system_fingerprint=self.fingerprint,
            choices=[choice],
        )
        if self.include_usage:
            chunk.usage = None  # now it is set, and shows as null
        return chunk

    def _usage(self, outputs: Sequence[GenerationOutput]) -> Usage:
        """Tokens of all choices; a prompt that several share counts once."""
        prompt = sum(len(prompt.tokens) for prompt in self.work.prompts)
        completion = sum(output.stats.generated_tokens for output in outputs)
        cached = sum(output.cached_tokens for output in outputs[:: self.work.choices])
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )


async def chunks(answer: Answer, streams: Sequence[GenerationStream]) -> AsyncGenerator[CompletionChunk, None]:
    """The answer's chunks, as its choices' streams give them."""
    try:
        for index in answer.choices:
            if (echo := answer.echo_chunk(index)) is not None:
                yield echo
        if not streams:
            for index in answer.choices:
                yield answer.last_chunk(index, NOTHING)
        async with aclosing(merged([_choice(answer, index, stream) for index, stream in enumerate(streams)])) as parts:
            async for chunk in parts:
                yield chunk
        if answer.include_usage:
            yield answer.usage_chunk([stream.output for stream in streams])
    finally:
        cancel_all(streams)


async def _choice(answer: Answer, index: int, stream: GenerationStream) -> AsyncGenerator[CompletionChunk, None]:
    writer = answer.writer(index)
    async for update in stream:
        if (chunk := answer.token_chunk(index, update, writer)) is not None:
            yield chunk
    yield answer.last_chunk(index, stream.output)


def sync_chunks(answer: Answer, streams: Sequence[SyncGenerationStream]) -> Generator[CompletionChunk]:
    """The chunks of blocking engine streams, the choices in turn: all are generated at the same time."""
    try:
        for index in answer.choices:
            if (echo := answer.echo_chunk(index)) is not None:
                yield echo
        if not streams:
            for index in answer.choices:
                yield answer.last_chunk(index, NOTHING)
        writers = [answer.writer(index) for index, _ in enumerate(streams)]
        active = dict(enumerate(streams))
        while active:
            for index, stream in list(active.items()):
                update = next(stream, None)
                if update is None:
                    yield answer.last_chunk(index, stream.output)
                    del active[index]
                elif (chunk := answer.token_chunk(index, update, writers[index])) is not None:
                    yield chunk
        if answer.include_usage:
            yield answer.usage_chunk([stream.output for stream in streams])
    finally:
        cancel_all(streams)
