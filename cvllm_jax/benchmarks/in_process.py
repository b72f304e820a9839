"""Speed of an engine in this process, timed where a program that uses it gets its tokens."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from cvllm_jax.benchmarks.workload import chats, conversation_lengths
from cvllm_jax.errors import ConfigError
from cvllm_jax.params import GenerationParams

if TYPE_CHECKING:
    from cvllm_jax.engine.engine import InferenceEngine

__all__ = ["Case", "Phase", "Samples", "cases", "chat_tokens", "run_case", "sample"]

Phase = Literal["prefill", "decode", "throughput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something to measure.

    Attributes:
      phase: "prefill": from a prompt to its first token. "decode": from the moment that every sequence has its first
        token to the last token of all. "throughput": from the first request of a list to the last token of all.
      prompts: token ids; all are there at the start.
      outputs: tokens that each generates, whatever they are.
    """

    name: str
    phase: Phase
    prompts: list[list[int]]
    outputs: list[int]


@dataclass(slots=True)
class Samples:
    """Tokens a second of one case, a number for each repetition."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def cases(
    tokens: Callable[[int, int], list[int]],
    *,
    prefill: Sequence[int] = (512,),
    decode: Sequence[tuple[int, int]] = ((1, 512), (8, 64)),
    requests: int = 0,
    new_tokens: int = 64,
) -> list[Case]:
    """Prompts of the lengths ``prefill``, batches of (sequences, depth), and ``requests`` conversations.

    ``tokens(number, length)`` makes a prompt, as :func:`chat_tokens` does.
    """
    found = [
        Case(name=f"prefill of {length}", phase="prefill", prompts=[tokens(0, length)], outputs=[1])
        for length in prefill
    ]
    for batch, depth in decode:
        found.append(
            Case(
                name=f"decode {batch} at {depth}", phase="decode",
                prompts=[tokens(number, depth) for number in range(batch)], outputs=[new_tokens] * batch,
            )
        )  # fmt: skip
    if requests:
        pairs = list(itertools.islice(itertools.cycle(conversation_lengths()), requests))
        prompts = [tokens(number, prompt) for number, (prompt, _) in enumerate(pairs)]
        outputs = [output for _, output in pairs]
        found.append(Case(name=f"{requests} conversations", phase="throughput", prompts=prompts, outputs=outputs))
    return found


def chat_tokens(engine: InferenceEngine) -> Callable[[int, int], list[int]]:
    """Makes prompts: ``length`` tokens of the chats, from chat ``number`` on and round again.

    Prompts begin alike only if their numbers differ by a multiple of the number of chats.
    """
    texts = [engine.tokenize(f"{chat['user']}\n\n{chat['assistant']}\n\n") for chat in chats()]

    def tokens(number: int, length: int) -> list[int]:
        start = number % len(texts)
        return list(itertools.islice(itertools.cycle(itertools.chain(*texts[start:], *texts[:start])), length))

    return tokens


async def run_case(engine: InferenceEngine, case: Case) -> tuple[int, float, list[list[int]]]:
    """Tokens, the seconds that they took, and each sequence's new tokens.

    Raises:
      ConfigError: a prompt and its answer are longer than the engine's limit.
    """
    limit = engine.config.max_sequence_length
    for prompt, output in zip(case.prompts, case.outputs, strict=True):
        if limit is not None and len(prompt) + output > limit:
            raise ConfigError(f"{case.name} needs {len(prompt) + output} tokens, and the engine's limit is {limit}")
    start = time.perf_counter()
    streams = await asyncio.gather(*map(_stream, itertools.repeat(engine), case.prompts, case.outputs))
    arrivals = [[moment for _, moment in stream] for stream in streams]
    answers = [[token for token, _ in stream] for stream in streams]
    if case.phase == "prefill":
        return sum(map(len, case.prompts)), max(times[0] for times in arrivals) - start, answers
    begin = start if case.phase == "throughput" else max(times[0] for times in arrivals)
    later = [moment for times in arrivals for moment in times if moment > begin]
    return len(later), max(later) - begin, answers


def sample(engine: InferenceEngine, measured: Sequence[Case], rounds: int) -> dict[str, Samples]:
    """Every case once a round, ``rounds`` times after one round that warms up and is not counted."""
    samples = {case.name: Samples() for case in measured}
    for number in range(rounds + 1):
        for case in measured:
            tokens, seconds, _ = asyncio.run(run_case(engine, case))
            if number:
                samples[case.name].values.append(tokens / seconds)
    return samples


async def _stream(engine: InferenceEngine, prompt: list[int], new_tokens: int) -> list[tuple[int, float]]:
    """The tokens of one stream, and when each reached its reader."""
    params = GenerationParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    stream = engine.generate_stream(prompt, params)
    found = [(update.token, time.perf_counter()) async for update in stream if update.token is not None]
    if len(found) != new_tokens:
        raise RuntimeError(f"{new_tokens} tokens were asked for, and {len(found)} came")
    return found
