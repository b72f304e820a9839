"""Generation results as choices, chunks and usage."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cvllm_jax import __version__
from cvllm_jax.errors import CancelledError, OtherError
from cvllm_jax.openai.errors import GenerationFailedError
from cvllm_jax.openai.types import (
    ChatChoice,
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChoiceDelta,
    ChoiceLogprobs,
    ChunkChoice,
    FinishReasonName,
    Message,
    PromptTokensDetails,
    TokenLogprob,
    TopTokenLogprob,
    Usage,
)
from cvllm_jax.params import FinishReason, GenerationOutput, ModelInfo, TokenUpdate, TopLogprob

if TYPE_CHECKING:
    from cvllm_jax.text import Tokenizer

__all__ = ["Completion", "system_fingerprint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What all parts of one answer share, and how its parts are made."""

    model: str
    tokenizer: Tokenizer
    fingerprint: str
    logprobs: bool = False
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def response(self, outputs: Sequence[GenerationOutput]) -> ChatCompletionResponse:
        """The whole answer. Raises GenerationFailedError if the engine could not finish it."""
        return ChatCompletionResponse(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=[self._choice(index, output) for index, output in enumerate(outputs)],
            usage=usage_of(outputs),
        )

    def first_chunk(self, index: int) -> ChatCompletionChunk:
        return self._chunk(index, ChoiceDelta(role="assistant", content=""))

    def token_chunk(self, index: int, update: TokenUpdate) -> ChatCompletionChunk | None:
        """What one token adds, or None if it shows nothing yet."""
        logprobs = None
        if self.logprobs and update.token is not None and update.logprob is not None:
            entry = self._logprob(update.token, update.logprob, update.top_logprobs)
            logprobs = ChoiceLogprobs(content=[entry])
        if not update.text and logprobs is None:
            return None
        return self._chunk(index, ChoiceDelta(content=update.text), logprobs)

    def last_chunk(self, index: int, output: GenerationOutput) -> ChatCompletionChunk:
        return self._chunk(index, ChoiceDelta(), finish_reason=finish_reason_name(output))

    def usage_chunk(self, outputs: Sequence[GenerationOutput]) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=[],
            usage=usage_of(outputs),
        )

    def _chunk(
        self,
        index: int,
        delta: ChoiceDelta,
        logprobs: ChoiceLogprobs | None = None,
        finish_reason: FinishReasonName | None = None,
    ) -> ChatCompletionChunk:
        chunk = ChatCompletionChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=[ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)],
        )
        if self.include_usage:
            chunk.usage = None  # now it is set, and shows as null
        return chunk

    def _choice(self, index: int, output: GenerationOutput) -> ChatChoice:
        logprobs = None
        if self.logprobs and output.logprobs is not None:
            alternatives = output.top_logprobs or [[] for _ in output.tokens]
            logprobs = ChoiceLogprobs(
                content=[
                    self._logprob(token, logprob, top)
                    for token, logprob, top in zip(output.tokens, output.logprobs, alternatives, strict=True)
                ]
            )
        return ChatChoice(
            index=index,
            message=Message.assistant(output.text),
            logprobs=logprobs,
            finish_reason=finish_reason_name(output),
        )

    def _logprob(self, token: int, logprob: float, top: Sequence[TopLogprob] | None) -> TokenLogprob:
        text, data = self._token_text(token)
        alternatives = []
        for entry in top or ():
            other_text, other_data = self._token_text(entry.token)
            alternatives.append(TopTokenLogprob(token=other_text, logprob=entry.logprob, bytes=other_data))
        return TokenLogprob(token=text, logprob=logprob, bytes=data, top_logprobs=alternatives)

    def _token_text(self, token: int) -> tuple[str, list[int]]:
        data = self.tokenizer.token_bytes(token)
        return data.decode("utf-8", "replace"), list(data)


def finish_reason_name(output: GenerationOutput) -> FinishReasonName:
    """OpenAI's name of why ``output`` ended; raises if it did not end by itself."""
    match output.finish_reason:
        case FinishReason.Stop | FinishReason.StopSequence():
            return "stop"
        case FinishReason.Length:
            return "length"
        case FinishReason.Cancelled:
            raise CancelledError("the request was cancelled before the answer was complete")
        case FinishReason.Error(message):
            raise GenerationFailedError(message)
        case other:
            raise OtherError(f"unknown finish reason {other!r}")


def usage_of(outputs: Sequence[GenerationOutput]) -> Usage:
    """Tokens of all choices; the prompt they share counts once."""
    prompt = outputs[0].stats.prompt_tokens
    completion = sum(output.stats.generated_tokens for output in outputs)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=outputs[0].cached_tokens),
    )


def system_fingerprint(info: ModelInfo) -> str:
    """Changes when the same seed may give another answer: with version, model, type and device."""
    parts = (
        __version__,
        info.name,
        info.architecture,
        info.parameters,
        info.dtype,
        info.quantization,
        info.device,
    )
    return "fp_" + hashlib.blake2b(repr(parts).encode(), digest_size=5).hexdigest()
