"""Prefill and decoding: the same token ids through every engine, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from bench.cpu.engines import OURS, start_workers
from bench.workloads import workloads
from cvllm_jax.benchmarks.in_process import Case
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.text import ChatTemplate, Tokenizer

__all__ = ["measure_offline"]

#: Tokens of an answer in the round that is not counted.
WARM_UP = 8
CASES = ("prefill of 512", "decode 1 at 512", "decode 8 at 64")

Answers = list[list[int]]


def measure_offline(model: Path, *, threads: int, rounds: int, new_tokens: int) -> dict[str, Any]:
    """Tokens a second by case and engine, and how far the engines said the same."""
    with open_checkpoint(str(model)) as checkpoint:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
        template = ChatTemplate.from_checkpoint(checkpoint, tokenizer)
    if template is None:
        raise SystemExit(f"{model.name} has no chat template to make prompts with")
    cases = [case for case in workloads(tokenizer, template, new_tokens) if case.name in CASES]
    workers = start_workers(model, threads)
    samples: dict[str, dict[str, list[float]]] = {case.name: {name: [] for name in workers} for case in cases}
    answers: dict[str, dict[str, Answers]] = {case.name: {} for case in cases}
    try:
        for number in range(rounds + 1):
            turn = list(workers)[:: 1 if number % 2 else -1]
            for case in cases:
                job = case if number else replace(case, outputs=[min(each, WARM_UP) for each in case.outputs])
                for name in turn:
                    rate, said = workers[name].run(asdict(job))
                    answers[case.name][name] = said
                    if number:
                        samples[case.name][name].append(round(rate, 2))
            print(f"  round {number} of {rounds} done", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    for case in cases:
        check_answers(case, answers[case.name], tokenizer)
    return {
        "new_tokens": new_tokens,
        "engines": {name: worker.facts for name, worker in workers.items()},
        "samples": samples,
        "agreement": {case.name: agreement(answers[case.name]) for case in cases if case.phase == "decode"},
        "text": {name: tokenizer.decode(said[0])[:200] for name, said in answers["decode 1 at 512"].items()},
    }


def check_answers(case: Case, answers: Mapping[str, Answers], tokenizer: Tokenizer) -> None:
    """Whether what was timed was an answer.

    Raises:
      RuntimeError: an engine gave another number of tokens than was asked for, or no text, or one token forever.
    """
    for name, said in answers.items():
        if [len(tokens) for tokens in said] != case.outputs:
            raise RuntimeError(f"{name}, {case.name}: {case.outputs} tokens were asked for, not {list(map(len, said))}")
        if not any(tokenizer.decode(tokens).strip() for tokens in said):
            raise RuntimeError(f"{name}, {case.name}: the answers have no text")
        if case.outputs[0] > 8 and any(len(set(tokens)) == 1 for tokens in said):
            raise RuntimeError(f"{name}, {case.name}: an answer repeats one token")


def agreement(answers: Mapping[str, Answers]) -> dict[str, float]:
    """Of each engine's greedy tokens, the share before the first that is not ours; mean over sequences."""
    ours = answers[OURS]
    return {
        name: round(statistics.mean(map(_common, ours, said)), 3) for name, said in answers.items() if name != OURS
    }


def _common(first: Sequence[int], second: Sequence[int]) -> float:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second))) / len(first)
