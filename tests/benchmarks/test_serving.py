"""Measuring a server: what is sent, and what is made of what comes back."""

import asyncio
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import live_server

from cvllm_jax.benchmarks import (
    Lengths,
    Limits,
    Outcome,
    Target,
    Workload,
    chat_requests,
    measure,
    percentile,
    summarize,
)  # fmt: skip
from cvllm_jax.benchmarks.resources import watch_usage
from cvllm_jax.errors import ConfigError


@pytest.fixture(scope="module")
def url(make_engine):
    with live_server(make_engine()) as running:
        yield f"{running.url}/v1"


def test_requests_are_the_same_for_the_same_workload():
    workload = Workload(requests=40, lengths=Lengths(64, 8), rate=5.0, shared_prefix=32)
    requests = chat_requests(workload)
    assert requests == chat_requests(workload) and len(requests) == 40
    systems = {request.messages[0]["content"] for request in requests}
    assert len(systems) == 1 and 20 <= len(systems.pop().split()) <= 28
    texts = [request.messages[-1]["content"] for request in requests]
    assert len({text[:12] for text in texts}) == 40  # none is in a prefix cache because of another
    assert all(45 <= len(text.split()) <= 51 for text in texts)


def test_arrivals_are_a_poisson_process():
    times = [request.arrival for request in chat_requests(Workload(requests=2000, lengths=Lengths(4, 1), rate=10.0))]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times[0] == 0.0 and statistics.mean(gaps) == pytest.approx(0.1, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(0.1, rel=0.15)  # as large as the mean
    assert all(request.arrival == 0 for request in chat_requests(Workload(requests=5)))


@pytest.mark.parametrize("text", ["", "512", "0:4", "4:0", "a:b", "512:128:1", "-1:4", "1e3:4"])
def test_lengths_that_are_none(text):
    with pytest.raises(ConfigError, match="lengths are 'chats' or PROMPT:OUTPUT"):
        Lengths.parse(text)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 1))
def test_percentiles_lie_where_numpy_puts_them(values, share):
    import numpy as np

    assert percentile(values, share) == pytest.approx(float(np.quantile(values, share)), rel=1e-9, abs=1e-6)


def test_figures_of_a_run():
    def outcome(sent, texts, duration, tokens):
        return Outcome(0.0, sent, texts, duration, prompt_tokens=10, output_tokens=tokens)

    good = [outcome(0.5, [0.1, 0.2, 0.4], 0.4, 3), outcome(0.0, [0.1], 0.2, 1)]
    failed = Outcome(0.0, 0.0, [9.0], 9.0, error="status 500")
    found = summarize([*good, failed], 2.0, Limits(first_token_ms=200.0))
    assert (found.requests, found.failed, found.output_tokens, found.prompt_tokens) == (3, 1, 4, 20)
    assert found.output_rate == 2.0 and found.request_rate == 1.0 and found.goodput == 0.5
    assert found.first_token["mean"] == pytest.approx(350) and found.request["p50"] == pytest.approx(550)
    assert found.token["mean"] == pytest.approx(150) and found.between["p95"] == pytest.approx(195)
    held = summarize(good, 2.0, Limits(first_token_ms=200.0), held_back=True)
    assert held.first_token["mean"] == pytest.approx(100) and held.goodput == 1.0
    assert math.isnan(summarize([failed], 1.0).first_token["p50"])


def test_answers_of_a_server(url):
    requests = chat_requests(Workload(requests=6, lengths=Lengths(24, 5), rate=200.0))
    done = []
    outcomes, duration = asyncio.run(measure(Target(url=url), requests, concurrency=2, progress=done.append))
    assert done == [1, 2, 3, 4, 5, 6]
    for outcome in outcomes:
        assert outcome.error is None and outcome.output_tokens == 5 and outcome.prompt_tokens > 0
        assert outcome.texts == sorted(outcome.texts) and outcome.texts[-1] <= outcome.duration <= duration
    spans = [(o.sent, o.sent + o.duration) for o in outcomes]
    assert max(sum(start <= moment < end for start, end in spans) for moment, _ in spans) <= 2


def test_a_request_that_is_refused_is_counted_as_failed(url):
    requests = chat_requests(Workload(requests=1, lengths=Lengths(16, 100_000)))
    [outcome], _ = asyncio.run(measure(Target(url=url), requests))
    assert outcome.error.startswith("status 400")


def test_where_nothing_answers():
    with pytest.raises(ConfigError, match=re.escape("no model can be asked for at http://127.0.0.1:9/v1")):
        asyncio.run(measure(Target(url="http://127.0.0.1:9/v1"), []))


def test_memory_of_a_process_and_its_children():
    child = "x = bytearray(80_000_000); print(1, flush=True); import time; time.sleep(9)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True)
    try:
        with watch_usage(process.pid, interval=0.005) as usage:
            process.stdout.readline()
        with watch_usage(process.pid) as later:
            pass
    finally:
        os.killpg(process.pid, 9)
        process.communicate()
    assert usage.memory_before < usage.peak_memory
    assert 80e6 < later.peak_memory < 200e6
    with watch_usage(process.pid) as gone:
        pass
    assert gone.peak_memory is None


def test_the_command(url, tmp_path):
    out = tmp_path / "run.json"
    command = ["bench", "serve", "--url", url, "--requests", "3", "--lengths", "16:4", "--pid", str(os.getpid()),
               "--first-token-limit", "60000", "--json", str(out)]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "cvllm_jax", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in ("3 chats in", "output tokens a second", "to the first token", "of these within the limits"):
        assert line in done.stdout
    found = json.loads(out.read_text())
    assert found["figures"]["output_tokens"] == 12 and len(found["outcomes"]) == 3
    assert found["workload"]["lengths"] == {"prompt": 16, "output": 4, "longest": None}
    assert found["usage"]["peak_memory"] > 1e6
    refused = subprocess.run(
        [sys.executable, "-m", "cvllm_jax", "bench", "serve", "--url", url, "--lengths", "16:99999", "--warm-up", "0"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: 64 of 64 chats failed, the first with: status 400")
