"""Measuring an engine in this process."""

import asyncio
import json
import subprocess
import sys

import pytest

from cvllm_jax.benchmarks.in_process import cases, chat_tokens, run_case, sample
from cvllm_jax.errors import ConfigError


def test_cases_of_an_engine(tiny_engine):
    tokens = chat_tokens(tiny_engine)
    found = cases(tokens, prefill=(32, 100), decode=((2, 16),), requests=0, new_tokens=5)
    assert [case.name for case in found] == ["prefill of 32", "prefill of 100", "decode 2 at 16"]
    assert [len(case.prompts[0]) for case in found] == [32, 100, 16] and found[0].prompts[0] == tokens(0, 32)
    assert found[2].prompts[0] != found[2].prompts[1]
    assert asyncio.run(run_case(tiny_engine, found[1]))[0] == 100
    # of each sequence the first token is where the clock starts, which the later of the two sets
    assert 4 <= asyncio.run(run_case(tiny_engine, found[2]))[0] <= 8
    samples = sample(tiny_engine, found[:1], rounds=3)
    assert len(samples["prefill of 32"].values) == 3 and samples["prefill of 32"].median > 0


def test_what_does_not_fit(tiny_engine):
    [case] = cases(chat_tokens(tiny_engine), prefill=(), decode=((1, 250),), new_tokens=7)
    with pytest.raises(ConfigError, match="decode 1 at 250 needs 257 tokens, and the engine's limit is 256"):
        asyncio.run(run_case(tiny_engine, case))


def test_the_command(tiny_model_path, tmp_path):
    out = tmp_path / "engine.json"
    done = subprocess.run(
        [sys.executable, "-m", "cvllm_jax", "bench", "engine", str(tiny_model_path), "--prefill", "16", "--decode",
         "2@8", "--new-tokens", "4", "--rounds", "2", "--max-sequence-length", "64", "--no-warmup", "--json", out],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "prefill of 16" in done.stdout and "decode 2 at 8" in done.stdout
    assert len(json.loads(out.read_text())["figures"]["decode 2 at 8"]["samples"]) == 2


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--decode", "8", "'8' is not SEQUENCES@DEPTH"), ("--prefill", "1,x", "'x' is no number")],
)
def test_options_that_are_none(option, value, said):
    done = subprocess.run(
        [sys.executable, "-m", "cvllm_jax", "bench", "engine", option, value], capture_output=True, text=True
    )
    assert done.returncode == 2 and said in " ".join(done.stderr.split())
