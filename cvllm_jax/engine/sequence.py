"""One request on its way: its tokens, its pages and its answer so far."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Protocol

from cvllm_jax.engine.drafts import PromptLookup
from cvllm_jax.engine.pages import BlockHash, BlockTable
from cvllm_jax.engine.stopping import StopStrings
from cvllm_jax.params import (
    FinishReason,
    GenerationOutput,
    GenerationParams,
    GenerationStats,
    RequestHandle,
    RequestUpdate,
    TopLogprob,
)

__all__ = ["Constraint", "Sampled", "Sequence", "State", "TextDecoder"]


class State(enum.Enum):
    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


class TextDecoder(Protocol):
    """Turns tokens into text piece by piece."""

    def push(self, token: int) -> str: ...
    def finish(self) -> str: ...


class Constraint(Protocol):
    """A grammar's view of one answer; see :class:`cvllm_jax.engine.constraint.GrammarConstraint`."""

    def mask(self) -> bytes: ...
    def take(self, token: int) -> None: ...
    def forced(self) -> list[int]: ...
    @property
    def finished(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step chose for one sequence."""

    token: int
    logprob: float | None = None
    top_logprobs: list[TopLogprob] | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """State of one request. The scheduler owns the fields from ``state`` to ``cached_tokens``."""

    handle: RequestHandle
    params: GenerationParams
    tokens: list[int]
    """The prompt, then every token read back from the device."""
    prompt_length: int
    max_tokens: int
    """Limit on generated tokens, fitted to the context."""
    end_tokens: frozenset[int]
    """Tokens that end the answer and are no part of it."""
    seed: tuple[int, int]
    """Words of the 64-bit seed, low first."""
    decoder: TextDecoder
    report: Callable[[RequestUpdate], None]
    state: State = State.WAITING
    slot: int | None = None
    tables: list[BlockTable] = field(default_factory=list)
    """Its pages in each cache group; none while it waits."""
    hashes: list[BlockHash] = field(default_factory=list)
    computed: int = 0
    """Tokens whose keys and values are in the cache, or will be by a step that is dispatched."""
    prefilled: bool = False
    """All known tokens are computed and the last one chosen is on the device: the sequence decodes."""
    pending: int = 0
    """Tokens chosen by dispatched steps and not read yet."""
    drafts: PromptLookup | None = None
    """Where guesses at its next tokens come from."""
    drafted: int = 0
    """Guesses in the step that is not read yet; ``computed`` takes them for right."""
    registered: int = 0
    """Pages handed to the prefix cache."""
    preempted: bool = False
    """Whether it ever gave up its pages."""
    cached_tokens: int = 0
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[TopLogprob]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    arrived: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    constraint: Constraint | None = None
    """What the answer must match, and how far it has come."""
    mask: bytes | None = None
    """What the constraint allows for the next token, as the last plan found it."""
    _stops: StopStrings = field(init=False)

    def __post_init__(self) -> None:
        self._stops = StopStrings(self.params.stop_sequences)

    @property
    def length(self) -> int:
        """Tokens known and pending."""
        return len(self.tokens) + self.pending

    @property
    def generated(self) -> Tokens[int]:
        return self.tokens[self.prompt_length :]

    @property
    def num_generated(self) -> int:
        """Generated tokens, pending ones included."""
        return self.length - self.prompt_length

    @property
    def complete(self) -> bool:
        """Every token that the limits allow is chosen already; nothing more is to be planned."""
        return self.num_generated >= self.max_tokens

    @property
    def tracks_tokens(self) -> bool:
        """Whether the device needs this request's token counts, bias or end tokens to choose a token."""
        p = self.params
        penalises = p.repetition_penalty != 1.0 or p.frequency_penalty or p.presence_penalty
        return bool(penalises or p.logit_bias or (p.min_tokens and self.constraint is None))

    @property
    def forbid_end(self) -> int:
        """In how many of the next tokens the device may not choose an end; under a constraint masks see to that."""
        return 0 if self.constraint is not None else max(0, self.params.min_tokens - self.num_generated)

    def append(self, sampled: Sampled) -> FinishReason | None:
        """Take the token that a step chose; the reason if it ends the answer. Reports text to the caller."""
        top: list[TopLogprob] | None = None
        if self.first_token is None:
            self.first_token = time.monotonic()
        if sampled.token in self.end_tokens:
            return FinishReason.Stop
        if self.constraint is not None:
            self.constraint.take(sampled.token)
        self.tokens.append(sampled.token)
        if self.params.logprobs and sampled.logprob is not None:
            self.logprobs.append(sampled.logprob)
            self.top_logprobs.append(top := (sampled.top_logprobs or [])[: self.params.top_logprobs])
        text = self.decoder.push(sampled.token)
        if len(self.tokens) - self.prompt_length >= self.params.min_tokens:
            text = self._stops.push(text)
        self.text.append(text)
        self.report(RequestUpdate.Token(sampled.token, text, sampled.logprob, self.handle, top))
        if self._stops.matched is not None:
            return FinishReason.StopSequence(self._stops.matched)
        if len(self.tokens) - self.prompt_length >= self.max_tokens:
            return FinishReason.Length
        if self.constraint is not None and self.constraint.finished:
            return FinishReason.Stop
        return None

    def forced(self) -> list[int]:
        """Tokens that the constraint leaves no choice about, to be appended at once.

        None for requests that want what only a step gives: log probabilities, or token counts on the device.
        """
        if self.constraint is None or self.params.logprobs or self.tracks_tokens:
            return []
        return self.constraint.forced()

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        """Report the end of the request, with text that was held back."""
        # a decoder that failed has nothing more to say
        rest = "" if isinstance(reason, FinishReason.Error) else self._stops.push(self.decoder.finish(), final=True)
        if self._stops.matched is not None and reason in (FinishReason.Stop, FinishReason.Length):
            reason = FinishReason.StopSequence(self._stops.matched)
        if rest:
            self.text.append(rest)
            self.report(RequestUpdate.Token(None, rest, None, self.handle))
        self.state = State.FINISHED
        output = self._output(reason)
        if error is None:
            self.report(RequestUpdate.Completed(output, self.handle))
        else:
            self.report(RequestUpdate.Failed(error, output, self.handle))

    def _output(self, reason: FinishReason) -> GenerationOutput:
        seconds = time.monotonic() - self.arrived
        generated = len(self.tokens) - self.prompt_length
        return GenerationOutput(
            tokens=list(self.generated),
            text="".join(self.text),
            finish_reason=reason,
            logprobs=self.logprobs if self.params.logprobs else None,
            top_logprobs=self.top_logprobs if self.params.logprobs and self.params.top_logprobs else None,
            stats=GenerationStats(
                prompt_tokens=self.prompt_length,
                generated_tokens=generated,
                total_time_ms=round(seconds * 1000),
                tokens_per_second=generated / seconds if seconds > 0 else 0.0,
                time_to_first_token_ms=(
                    None if self.first_token is None else round((self.first_token - self.arrived) * 1000)
                ),
                cached_tokens=self.cached_tokens,
            ),
            handle=self.handle,
        )
