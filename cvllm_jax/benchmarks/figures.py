"""Figures of a run of requests: latencies as their users feel them, and what the server got done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cvllm_jax.benchmarks.client import Outcome

__all__ = ["Limits", "Summary", "percentile", "summarize"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a user would put up with, in milliseconds; None for anything. Goodput counts what stays within both."""

    first_token_ms: float | None = None
    token_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """Latencies in milliseconds, rates a second.

    Attributes:
      first_token: from the moment that a request was due to its first text (time to first token). Requests that are
        held back by the run's own ``concurrency`` are counted from when they are sent.
      token: mean time between the tokens of an answer after its first (time per output token), over requests.
      between: time between pieces of text as they came (inter-token latency), over all pieces of all requests.
      request: from due to the end of the stream.
      goodput: requests a second that stayed within the limits.
    """

    requests: int
    failed: int
    duration: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_rate: float
    request_rate: float
    goodput: float
    first_token: dict[str, float]
    token: dict[str, float]
    between: dict[str, float]
    request: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarize(
    outcomes: Sequence[Outcome], duration: float, limits: Limits | None = None, *, held_back: bool = False
) -> Summary:
    """The figures of a run that took ``duration`` seconds; failed requests count as failed and nowhere else.

    ``held_back``: the run let only so many requests run at a time, so latencies count from when each was sent.
    """
    limits = limits or Limits()
    good = [outcome for outcome in outcomes if outcome.error is None]
    first_limit, token_limit = (math.inf if ms is None else ms for ms in (limits.first_token_ms, limits.token_ms))
    late = {id(o): 0.0 if held_back else max(0.0, o.sent - o.arrival) for o in good}
    firsts = {id(o): 1e3 * (late[id(o)] + o.texts[0]) for o in good if o.texts}
    each = {
        id(o): 1e3 * (o.texts[-1] - o.texts[0]) / (o.output_tokens - 1)
        for o in good
        if o.output_tokens > 1 and len(o.texts) > 1
    }
    between = [1e3 * (b - a) for o in good for a, b in zip(o.texts, o.texts[1:])]
    within = [
        o
        for o in good
        if firsts.get(id(o), 0.0) <= first_limit
        and each.get(id(o), 0.0) <= token_limit
    ]
    output = sum(o.output_tokens for o in good)
    return Summary(
        requests=len(outcomes), failed=len(outcomes) - len(good), duration=duration,
        prompt_tokens=sum(o.prompt_tokens for o in good), cached_tokens=sum(o.cached_tokens for o in good),
        output_tokens=output, output_rate=output / duration, request_rate=len(good) / duration,
        goodput=len(within) / duration, first_token=_spread(list(firsts.values())), token=_spread(list(each.values())),
        between=_spread(between), request=_spread([1e3 * (late[id(o)] + o.duration) for o in good]),
    )  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of them lie, between neighbours by proportion; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _spread(values: Sequence[float]) -> dict[str, float]:
    mean = sum(values) / len(values) if values else math.nan
    return {"mean": mean, **{f"p{share}": percentile(values, share / 100) for share in (50, 95, 99)}}
