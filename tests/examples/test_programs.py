"""The examples that run to their end, as a user starts them."""

import io
import runpy
import sys

import pytest
from conftest import ROOT

from cvllm_jax import GenerationError, GenerationParams


@pytest.fixture
def run_example(monkeypatch, capsys, script_path):
    """An example's output, run with the scripted model as its first argument."""

    def run(name, stdin=""):
        monkeypatch.setattr(sys, "argv", [name, f"scripted:{script_path}"])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_agent_runs_its_tool(run_example):
    lines = run_example("agent.py").splitlines()
    call = 'get_weather({"city": "Paris"}): {"city":"Paris","sky":"clear","celsius":21.0}'
    assert lines == [call, "It is 21 °C in Paris."]


def test_batch_answers_every_line(run_example):
    prompts = [f"number {number}" for number in range(20)]
    answers = run_example("batch.py", "\n".join(prompts)).split("\n\n")
    said = "A number.", "Hello! How can I help?"
    expected = {f"Q: {prompt}\nA: {said[prompt[7] not in '123']}" for prompt in prompts}
    assert {answer.strip() for answer in answers if answer.strip()} == expected


def test_batch_raises_what_a_request_failed_with(load_example, engine):
    batch = load_example("batch")
    with pytest.raises(GenerationError, match="max_tokens is 100000"):
        list(batch.answers(engine, ["number 1"], GenerationParams(max_tokens=100_000)))
