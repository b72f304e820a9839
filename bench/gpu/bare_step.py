"""A compiled decode step without the engine around it: what the device takes when the host has nothing to do."""

import time
from collections.abc import Callable
from typing import Any

import jax

from cvllm_jax.engine.pages import PageRun
from cvllm_jax.engine.plan import DecodeRow, Plan, SamplingSettings
from cvllm_jax.engine.runner import Runner

GREEDY = SamplingSettings(
    temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, frequency_penalty=0.0,
    presence_penalty=0.0, seed=(0, 0), logprobs=False, top_logprobs=False, tracks_tokens=False,
)  # fmt: skip


def bare_step_seconds(runner: Runner, sequences: int, length: int, repeats: int) -> float:
    """Seconds of a greedy step of so many sequences of ``length`` tokens, called back to back on an idle engine.

    The batch is on the device already, and no token is read. Pages are used that the engine holds to be free, so it
    must not have a prefix cache.
    """
    settings = runner.settings
    pages = -(-length // settings.page_size)
    if sequences * pages >= min(settings.num_pages):
        raise ValueError(f"{sequences} sequences of {pages} pages do not fit in {min(settings.num_pages)} pages")
    rows = tuple(
        DecodeRow(
            slot=index, position=length - 1, steps=1, forbid_end=0, sampling=GREEDY,
            tables=(PageRun(0, tuple(range(1 + index * pages, 1 + (index + 1) * pages))),) * len(settings.groups),
        )
        for index in range(sequences)
    )  # fmt: skip
    plan = Plan(admissions=(), decode=rows, decode_steps=1, prefill=())
    times: list[float] = []

    def repeating(program: Callable[..., Any]) -> Callable[..., Any]:
        """The program as the runner calls it, many times in its place; what a call donates the next one gets back."""

        def run(leaves: Any, cache: Any, state: Any, *batch: Any) -> Any:
            for count in (3, repeats, repeats, repeats):
                began = time.perf_counter()
                for _ in range(count):
                    cache, state, out = program(leaves, cache, state, *batch)
                jax.block_until_ready(out)
                times.append((time.perf_counter() - began) / count)
            return cache, state, out

        return run

    get = runner.programs.get
    runner.programs.get = lambda *arguments: repeating(get(*arguments))  # type: ignore[method-assign]
    try:
        runner.read(runner.dispatch(plan))
    finally:
        del runner.programs.get  # the method of the class is back
    return min(times[1:])
