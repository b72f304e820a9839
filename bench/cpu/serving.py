"""Serving: the same chats at every server through the same client, in turns."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.cpu.engines import Server, serving
from cvllm_jax.benchmarks import Outcome, Target, Workload, chat_requests, measure, summarize
from cvllm_jax.benchmarks.resources import watch_usage
from cvllm_jax.benchmarks.workload import ChatRequest, Lengths

__all__ = ["measure_serving"]

CONCURRENT = 16
#: Tokens that prompt and answer have together at most, in each of llama.cpp's slots.
CONTEXT = 2560
#: Longer answers are left out, so that the end of a run is not one answer alone.
LENGTHS = Lengths(longest=256)
PREFIX, QUESTION, ANSWER = 2048, 48, 16
CASES = ("serving throughput", "serving first token p95", "shared prefix first token")


def measure_serving(model: Path, *, threads: int, rounds: int, requests: int) -> dict[str, Any]:
    """Samples by case and server, with each run's latencies."""
    with serving(model, threads, CONCURRENT, CONTEXT) as servers:
        samples: dict[str, dict[str, list[float]]] = {case: {s.name: [] for s in servers} for case in CASES}
        runs: dict[str, list[dict[str, Any]]] = {server.name: [] for server in servers}
        for server in servers:  # other chats than those that are counted
            _chats(server, Workload(requests=4, lengths=Lengths(64, 8), seed=1000))
            _second_request(server, 1000)
        for number in range(rounds):
            turn = servers[:: -1 if number % 2 else 1]
            for server in turn:
                run = _run(server, Workload(requests=requests, lengths=LENGTHS, concurrency=CONCURRENT, seed=number))
                runs[server.name].append(run)
                samples["serving throughput"][server.name].append(round(run["output_rate"], 2))
                samples["serving first token p95"][server.name].append(round(run["first_token"]["p95"], 1))
            for repetition in range(2):
                for server in turn:
                    first_token = _second_request(server, 2 * number + repetition)
                    samples["shared prefix first token"][server.name].append(round(first_token, 1))
            print(f"  serving round {number + 1} of {rounds} done", flush=True)
    return {"requests": requests, "concurrent": CONCURRENT, "samples": samples, "runs": runs}


def _run(server: Server, workload: Workload) -> dict[str, Any]:
    """Figures of one run, with what the server's process took."""
    before = time.process_time()
    with watch_usage(server.pid) as usage:
        outcomes, duration = _chats(server, workload)
    summary = summarize(outcomes, duration, held_back=True).as_dict()
    return summary | {
        "client_seconds": round(time.process_time() - before, 2), "peak_memory": usage.peak_memory,
        "joules": usage.joules, "text": outcomes[0].text[:200],
        "output_lengths": [outcome.output_tokens for outcome in outcomes],
    }  # fmt: skip


def _chats(server: Server, workload: Workload) -> tuple[list[Outcome], float]:
    return _ask(server, chat_requests(workload), workload.concurrency)


def _ask(server: Server, requests: list[ChatRequest], concurrency: int | None) -> tuple[list[Outcome], float]:
    """Outcomes of which none has failed, is empty or has another length than was asked for."""
    outcomes, duration = asyncio.run(measure(Target(url=server.url), requests, concurrency=concurrency))
    for request, outcome in zip(requests, outcomes, strict=True):
        if outcome.error is not None:
            raise RuntimeError(f"{server.name}: {outcome.error}")
        if not outcome.text.strip() or outcome.output_tokens != request.output_tokens:
            raise RuntimeError(
                f"{server.name} was asked for {request.output_tokens} tokens and gave {outcome.output_tokens}: "
                f"{outcome.text[:80]!r}"
            )
    return outcomes, duration


def _second_request(server: Server, number: int) -> float:
    """Milliseconds to the first token of a request, after another that begins with the same 2,048 tokens."""
    workload = Workload(requests=2, lengths=Lengths(QUESTION, ANSWER), shared_prefix=PREFIX, seed=number)
    first, second = (_own_prefix(request, number) for request in chat_requests(workload))
    _ask(server, [first], None)
    [outcome], _ = _ask(server, [second], None)
    return 1e3 * outcome.texts[0]


def _own_prefix(request: ChatRequest, number: int) -> ChatRequest:
    """The request with a prefix that no repetition has had before."""
    system, *rest = request.messages
    return replace(request, messages=[{**system, "content": f"Session {number}. {system['content']}"}, *rest])
