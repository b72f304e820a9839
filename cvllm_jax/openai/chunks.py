"""Generation results as choices, chunks and usage."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cvllm_jax import __version__
from cvllm_jax.errors import CancelledError, OtherError
from cvllm_jax.grammar import GrammarError
from cvllm_jax.info import ModelInfo
from cvllm_jax.openai.answers import AnswerReader
from cvllm_jax.openai.constraints import Constraint
from cvllm_jax.openai.errors import GenerationFailedError
from cvllm_jax.openai.model_format import ModelFormat
from cvllm_jax.openai.tool_parsers import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
    fold,
)
from cvllm_jax.openai.tool_plan import ToolPlan
from cvllm_jax.openai.types import (
    ChatChoice,
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChoiceDelta,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionTokensDetails,
    FinishReasonName,
    FunctionCall,
    FunctionCallDelta,
    Message,
    PromptTokensDetails,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    TopTokenLogprob,
    Usage,
)
from cvllm_jax.params import FinishReason, GenerationOutput, TokenUpdate, TopLogprob
from cvllm_jax.text import Detokenizer

if TYPE_CHECKING:
    from cvllm_jax.text import Tokenizer

__all__ = ["Completion", "system_fingerprint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What all parts of one answer share, and how its parts are made."""

    model: str
    tokenizer: Tokenizer
    fingerprint: str
    format: ModelFormat
    plan: ToolPlan
    constraint: Constraint | None = None
    prompt_end: str = ""
    """The last tokens of the prompt as text."""
    skip_special_tokens: bool = True
    logprobs: bool = False
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def reader(self) -> AnswerReader:
        """Makes a message of one choice's text."""
        stream = self.format.stream(self.prompt_end, self.plan.prompt_tools() if self.plan.callable else None)
        return AnswerReader(stream, parallel=self.plan.parallel)

    def response(self, outputs: Sequence[GenerationOutput]) -> ChatCompletionResponse:
        """The whole answer. Raises as :meth:`last_chunks`."""
        readers = [self.reader() for _ in outputs]
        return ChatCompletionResponse(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=[
                self._choice(index, output, reader) for index, (output, reader) in enumerate(zip(outputs, readers))
            ],
            usage=usage_of(outputs, sum(reader.reasoning_tokens for reader in readers)),
        )

    def first_chunk(self, index: int) -> ChatCompletionChunk:
        return self._chunk(index, ChoiceDelta(role="assistant", content=""))

    def token_chunks(self, index: int, update: TokenUpdate, reader: AnswerReader) -> Iterator[ChatCompletionChunk]:
        """What one token adds, if it shows anything yet. Its log probability comes with the first chunk."""
        logprobs = None
        if self.logprobs and update.token is not None and update.logprob is not None:
            entry = self._logprob(update.token, update.logprob, update.top_logprobs)
            logprobs = ChoiceLogprobs(content=[entry])
        deltas = [_delta(event) for event in reader.feed(update.text, tokens=int(update.token is not None))]
        if logprobs is not None and not deltas:
            deltas = [ChoiceDelta()]
        for delta in deltas:
            yield self._chunk(index, delta, logprobs)
            logprobs = None

    def last_chunks(self, index: int, output: GenerationOutput, reader: AnswerReader) -> Iterator[ChatCompletionChunk]:
        """What was held back, and the finish reason.

        Raises GenerationFailedError if the engine did not finish, RequestError if the request's grammar was too much.
        """
        self._engine_reason(output)
        for event in reader.finish():
            yield self._chunk(index, _delta(event))
        yield self._chunk(index, ChoiceDelta(), finish_reason=self._finish_reason(output, reader))

    def usage_chunk(self, outputs: Sequence[GenerationOutput], reasoning_tokens: int) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=[],
            usage=usage_of(outputs, reasoning_tokens),
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

    def _choice(self, index: int, output: GenerationOutput, reader: AnswerReader) -> ChatChoice:
        message = self._message(output, reader)
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
            message=message,
            logprobs=logprobs,
            finish_reason=self._finish_reason(output, reader),
        )

    def _message(self, output: GenerationOutput, reader: AnswerReader) -> Message:
        events, text = [], output.text
        at = 0
        if self.format.may_reason:  # token by token, as it was made, to know how many are reasoning
            decoder = Detokenizer(self.tokenizer, self.skip_special_tokens)
            for token in output.tokens:
                end = at + len(decoder.push(token))
                events += reader.feed(text[at:end], tokens=1)
                at = end
        events += [*reader.feed(text[at:]), *reader.finish()]
        parsed = fold(events)
        calls = [
            ToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
            for call in parsed.tool_calls
        ]
        return Message(
            role="assistant",
            content=parsed.content,
            reasoning_content=parsed.reasoning,
            tool_calls=calls or None,
        )

    def _finish_reason(self, output: GenerationOutput, reader: AnswerReader) -> FinishReasonName:
        """A call that the request names ends with "stop", as at OpenAI: the model had no choice."""
        if reader.has_calls and not self.plan.named and output.finish_reason == FinishReason.Stop:
            return "tool_calls"
        return self._engine_reason(output)

    def _engine_reason(self, output: GenerationOutput) -> FinishReasonName:
        try:
            return finish_reason_name(output)
        except GrammarError as error:
            if self.constraint is None:
                raise
            raise self.constraint.refusal(error) from error

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


def _delta(event: Event) -> ChoiceDelta:
    match event:
        case ContentDelta(text):
            return ChoiceDelta(content=text)
        case ReasoningDelta(text):
            return ChoiceDelta(reasoning_content=text)
        case ToolCallStart(index, call_id, name):
            function = FunctionCallDelta(name=name, arguments="")
            return ChoiceDelta(tool_calls=[ToolCallDelta(index=index, id=call_id, type="function", function=function)])
        case ToolCallArguments(index, text):
            return ChoiceDelta(tool_calls=[ToolCallDelta(index=index, function=FunctionCallDelta(arguments=text))])


def finish_reason_name(output: GenerationOutput) -> FinishReasonName:
    """OpenAI's name of why ``output`` ended; raises if it did not end by itself."""
    match output.finish_reason:
        case FinishReason.Stop | FinishReason.StopSequence():
            return "stop"
        case FinishReason.Length:
            return "length"
        case FinishReason.Cancelled:
            raise CancelledError("the request was cancelled before the answer was complete")
        case FinishReason.Error(_, GrammarError() as error):  # the request's own fault, and no use to send again
            raise error
        case FinishReason.Error(message):
            raise GenerationFailedError(message)
        case other:
            raise OtherError(f"unknown finish reason {other!r}")


def usage_of(outputs: Sequence[GenerationOutput], reasoning_tokens: int = 0) -> Usage:
    """Tokens of all choices; the prompt they share counts once."""
    prompt = outputs[0].stats.prompt_tokens
    completion = sum(output.stats.generated_tokens for output in outputs)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=outputs[0].cached_tokens),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning_tokens),
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
