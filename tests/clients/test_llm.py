"""The `llm` command, with the server named in extra-openai-models.yaml."""

import json
import os
import subprocess
import sys

import pytest
from client_answers import ADA, CAPITAL, GREETING, REPORT, Person


def write_models(folder, served):
    shared = {"api_base": served.base_url, "supports_tools": True, "supports_schema": True}
    models = [
        {"model_id": "here", "model_name": served.model, **shared},
        {"model_id": "nobody", "model_name": "nobody", **shared},
    ]
    (folder / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML


@pytest.fixture
def llm(tmp_path, scripted):
    write_models(tmp_path, scripted)
    return lambda *arguments: run(tmp_path, *arguments)


def run(folder, *arguments, model="here"):
    command = [sys.executable, "-m", "llm", "prompt", "-m", model, *arguments]
    environment = os.environ | {"LLM_USER_PATH": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("options", [(), ("--no-stream",)])
def test_whole_and_streamed(llm, options):
    done = llm("hello", "--usage", *options)
    assert done.stdout.strip() == GREETING, done.stderr
    assert f"{len(GREETING.encode())} output" in done.stderr


@pytest.mark.parametrize("options", [(), ("--no-stream",)])
def test_a_tool_call_and_its_result(llm, options):
    code = 'def get_weather(city: str) -> str:\n    "The weather in a city."\n    return "21 degrees"\n'
    done = llm("How is the weather?", "--functions", code, *options)
    assert done.stdout.strip().endswith(REPORT), done.stderr


def test_structured_output(llm):
    done = llm("Ada as JSON", "--schema", json.dumps(Person.model_json_schema()))
    assert Person.model_validate_json(done.stdout) == ADA, done.stderr


def test_an_unknown_model(tmp_path, scripted):
    write_models(tmp_path, scripted)
    done = run(tmp_path, "hello", model="nobody")
    assert done.returncode == 1
    assert "nobody" in done.stderr


def test_the_demo_model(tmp_path, demo):
    write_models(tmp_path, demo)
    assert "Paris" in run(tmp_path, CAPITAL, "-o", "temperature", "0").stdout
