"""What goes into a generation and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cvllm_jax.errors import GenerationError, shown

__all__ = [
    "FinishReason",
    "GenerationOutput",
    "GenerationParams",
    "GenerationStats",
    "InferenceRequest",
    "RequestHandle",
    "RequestUpdate",
    "TokenUpdate",
    "TopLogprob",
]

MAX_TOP_LOGPROBS = 20


class _DefaultMaxTokens(int):
    """The default limit, told apart from the same number given by hand: it gives way where it does not fit."""


DEFAULT_MAX_TOKENS = _DefaultMaxTokens(256)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """How tokens are chosen and when generation ends. Defaults are those of the API's specification."""

    max_tokens: int | None = DEFAULT_MAX_TOKENS
    """Tokens to generate at most. An explicit number must fit the context; the default 256 gives way
    to a shorter rest of the context; None generates to the end of the context."""
    temperature: float = 1.0
    """0 chooses the most likely token (greedy)."""
    top_p: float = 1.0
    """Choose among the most likely tokens that together have this probability; 1 leaves all."""
    top_k: int | None = None
    """Choose among this many of the most likely tokens; None leaves all."""
    min_p: float = 0.0
    """Drop tokens less likely than this fraction of the most likely one."""
    repetition_penalty: float = 1.0
    """Divides (or multiplies, below zero) the logits of tokens in the prompt or the answer (CTRL, arXiv 1909.05858)."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that the answer has it, -2 to 2."""
    presence_penalty: float = 0.0
    """Taken from the logit of a token that the answer has, -2 to 2."""
    stop_sequences: Sequence[str] = ()
    """End the answer before any of these texts."""
    stop_token_ids: Sequence[int] = ()
    """End the answer at any of these tokens, which its text leaves out."""
    ignore_eos: bool = False
    """Go on after the model's end tokens, up to ``max_tokens``: for measuring."""
    min_tokens: int = 0
    """Neither an end token nor a stop token is chosen before this many tokens, unless a grammar leaves nothing else."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    logprobs: bool = False
    """Return the log probability of each chosen token, of the raw distribution."""
    top_logprobs: int = 0
    """Return this many most likely alternatives a position (at most 20); needs ``logprobs``."""
    seed: int | None = None
    """Any integer of 64 bits, signed or not. The same request with the same seed draws the same tokens."""
    grammar: Any = None
    """What the answer must match: a grammar of :mod:`cvllm_jax.grammar`, such as ``JsonSchemaGrammar(schema)``."""
    skip_special_tokens: bool = True
    """Leave control tokens out of the text. Parsers of tool calls need some of them."""

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, 1e6)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 1e-6, 1e6)  # beyond, f32 logits overflow
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        if self.top_k is not None:
            _integer("top_k", self.top_k, 1, 2**31 - 1)
        _integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens_is_explicit and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise GenerationError(
                f"min_tokens ({self.min_tokens}) is more than max_tokens ({self.max_tokens})", param="min_tokens"
            )
        _integer("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        if self.top_logprobs and not self.logprobs:
            raise GenerationError("top_logprobs needs logprobs=True", param="top_logprobs")
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**64 - 1)
        for name in ("ignore_eos", "logprobs", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise GenerationError(f"{name} must be true or false, not {shown(getattr(self, name))}", param=name)
        _sequence("stop_sequences", self.stop_sequences, "strings")
        for stop in self.stop_sequences:
            if not isinstance(stop, str) or not stop:
                raise GenerationError(
                    f"each stop sequence must be a non-empty string, not {shown(stop)}", param="stop_sequences"
                )
        _sequence("stop_token_ids", self.stop_token_ids, "token ids")
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0, 2**31 - 1)
        if not isinstance(self.logit_bias, Mapping):
            raise GenerationError(
                f"logit_bias must map token ids to numbers, not be {shown(self.logit_bias)}", param="logit_bias"
            )
        for token, bias in self.logit_bias.items():
            _integer("logit_bias", token, 0, 2**31 - 1)
            _number("logit_bias", bias, -100.0, 100.0)

    @property
    def max_tokens_is_explicit(self) -> bool:
        """Whether the caller chose the limit; the default one gives way to a shorter context."""
        return self.max_tokens is not None and not isinstance(self.max_tokens, _DefaultMaxTokens)


class FinishReason:
    """Why a generation ended: ``Stop``, ``Length``, ``StopSequence(text)``, ``Cancelled`` or ``Error(message)``.

    The plain kinds are values, the others classes, so that both work in ``match``::

        match output.finish_reason:
            case FinishReason.Stop: ...
            case FinishReason.StopSequence(text): ...
    """

    __slots__ = ()

    Stop: ClassVar[FinishReason]
    Length: ClassVar[FinishReason]
    Cancelled: ClassVar[FinishReason]
    StopSequence: ClassVar[type[_StopSequence]]
    Error: ClassVar[type[_FinishError]]

    @property
    def name(self) -> str:
        """The kind: ``"Stop"``, ``"Length"``, ``"StopSequence"``, ``"Cancelled"`` or ``"Error"``."""
        return "StopSequence" if isinstance(self, _StopSequence) else "Error"


@dataclass(frozen=True, slots=True, repr=False)
class _Plain(FinishReason):
    kind: str

    @property
    def name(self) -> str:
        return self.kind

    def __repr__(self) -> str:
        return f"FinishReason.{self.kind}"


@dataclass(frozen=True, slots=True)
class _StopSequence(FinishReason):
    value: str

    def __repr__(self) -> str:
        return f"FinishReason.StopSequence({self.value!r})"


@dataclass(frozen=True, slots=True)
class _FinishError(FinishReason):
    message: str
    error: Exception | None = field(default=None, compare=False)
    """What was raised, where that is more than the message."""

    def __repr__(self) -> str:
        return f"FinishReason.Error({self.message!r})"


FinishReason.Stop = _Plain("Stop")
FinishReason.Length = _Plain("Length")
FinishReason.Cancelled = _Plain("Cancelled")
FinishReason.StopSequence = _StopSequence
FinishReason.Error = _FinishError


@dataclass(frozen=True, slots=True)
class RequestHandle:
    """Names one request of one engine."""

    id: int
    """A number that the engine gives to no other request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """A prompt (token ids) with its parameters, for :meth:`InferenceEngine.add_request`."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    params: GenerationParams = field(default_factory=GenerationParams)
    """How the answer is chosen and where it ends."""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One likely token at a position and its log probability."""

    token: int
    """The token's id."""
    logprob: float
    """Natural log probability in the raw distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStats:
    """What one request took, in tokens and milliseconds."""

    prompt_tokens: int = 0
    """Tokens of the prompt, cached ones included."""
    generated_tokens: int = 0
    """Tokens of the answer."""
    total_time_ms: int = 0
    """From the request's arrival to its last token."""
    tokens_per_second: float = 0.0
    """Generated tokens over the total time."""
    time_to_first_token_ms: int | None = None
    """From the request's arrival to its first token; None if there was none."""
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were already in the prefix cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOutput:
    """A finished generation: its tokens, its text, why it ended and what it took."""

    tokens: list[int]
    """Every generated token, those of a stop string included; end tokens are not."""
    text: str
    """The answer, ending before a stop string."""
    finish_reason: FinishReason
    """Why the answer ended."""
    logprobs: list[float] | None = None
    """Natural log probability of each token in the raw distribution, if asked for."""
    top_logprobs: list[list[TopLogprob]] | None = None
    """The most likely alternatives at each position, if asked for."""
    stats: GenerationStats = field(default_factory=GenerationStats)
    """What the request took."""
    handle: RequestHandle | None = None
    """The request's name in its engine."""

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache had."""
        return self.stats.cached_tokens


@dataclass(frozen=True, slots=True)
class TokenUpdate:
    """One token of a stream.

    ``text`` is what became printable with it: empty while a character is incomplete or a stop string
    may be beginning. The last update of a stream may carry held-back text with ``token`` None.
    """

    token: int | None
    """The token's id."""
    text: str
    """What can be printed now."""
    logprob: float | None = None
    """Natural log probability in the raw distribution, if asked for."""
    top_logprobs: list[TopLogprob] | None = None
    """The most likely alternatives, if asked for."""


class RequestUpdate:
    """What :meth:`InferenceEngine.step` reports: ``Token``, ``Completed`` or ``Failed``, each with ``handle``."""

    __slots__ = ()

    Token: ClassVar[type[_TokenUpdate]]
    Completed: ClassVar[type[_Completed]]
    Failed: ClassVar[type[_Failed]]


@dataclass(frozen=True, slots=True)
class _TokenUpdate(RequestUpdate):
    token: int | None
    text: str
    logprob: float | None
    handle: RequestHandle
    top_logprobs: list[TopLogprob] | None = None


@dataclass(frozen=True, slots=True)
class _Completed(RequestUpdate):
    output: GenerationOutput
    handle: RequestHandle


@dataclass(frozen=True, slots=True)
class _Failed(RequestUpdate):
    error: Exception
    output: GenerationOutput
    handle: RequestHandle


RequestUpdate.Token = _TokenUpdate
RequestUpdate.Completed = _Completed
RequestUpdate.Failed = _Failed


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GenerationError(f"{name} must be a number, not {shown(value)}", param=name)
    if not low <= value <= high or (open_low and value == low):  # NaN compares false
        least = f"{'above' if open_low else 'at least'} {low:g}"
        raise GenerationError(f"{name} must be {least} and at most {high:g}, not {shown(value)}", param=name)


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise GenerationError(f"{name} must be a whole number, not {shown(value)}", param=name)
    if not low <= value <= high:
        raise GenerationError(f"{name} must be from {low} to {high}, not {shown(value)}", param=name)


def _sequence(name: str, value: Any, items: str) -> None:
    """Refuse what is no list: one string, and iterators, which the checks would use up."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        raise GenerationError(f"{name} must be a list of {items}, not {shown(value)}", param=name)
