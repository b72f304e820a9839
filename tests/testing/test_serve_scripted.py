"""`cvllm-jax serve scripted:FILE` in a process of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from scripted import COUNTED, LONG, REASONED, user, write_script

ROOT = Path(__file__).parents[2]
# those of make_scripted: the steps are compiled already when all tests run
SIZES = ("--max-sequence-length", "8192", "--dtype", "f32", "--prefill-chunk-size", "64", "--debug")


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "cvllm_jax", "serve", *arguments, "--port", "0", "--device", "cpu"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def served(script_path):
    process = start(f"scripted:{script_path}", *SIZES)
    lines = [process.stdout.readline() for _ in range(3)]
    assert "is ready on http://127.0.0.1:" in lines[0], process.communicate()[1]
    process.url = re.search(r"http://[\d.:]+\d", lines[0])[0]
    yield process
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_the_openai_client_gets_the_line(client, script_path):
    assert [model.id for model in client.models.list()] == [script_path.stem]
    for text, say in list(COUNTED.items())[:3]:
        answer = client.chat.completions.create(model=script_path.stem, messages=user(text))
        assert answer.choices[0].message.content == say
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens == len(say.encode())


def test_a_long_answer_streams(client, script_path):
    stream = client.chat.completions.create(model=script_path.stem, messages=user("count to a thousand"), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == LONG


def test_a_tool_call_comes_whole_and_streamed(client, script_path):
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    asked = {"model": script_path.stem, "messages": user("Weather?"), "tools": [tool]}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [call.function.name for call in choice.message.tool_calls] == ["get_weather"]
    arguments = choice.message.tool_calls[0].function.arguments
    assert json.loads(arguments) == {"city": "Paris", "unit": "°C"}
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    parts = [call.function.arguments for delta in deltas for call in delta.tool_calls or ()]
    assert "".join(part or "" for part in parts) == arguments


def test_a_tool_turn_and_unicode_through_curl(served, script_path):
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages = [
        *user("Weather?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"celsius": 21}'},
    ]
    body = json.dumps({"model": script_path.stem, "messages": messages})
    command = ["curl", "-sf", f"{served.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    message = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["choices"][0]["message"]
    assert message["content"] == REASONED.rpartition("\n\n")[2]
    assert message["reasoning_content"] == "The tool says 21."


def test_a_bad_script_is_one_sentence_and_status_1(tmp_path):
    path = write_script(tmp_path, [{"when": "a", "say": "b"}, {"when": "[", "say": "b"}])
    process = start(f"scripted:{path}")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"error: rule 1 of the script {path}: '[' is no regular expression")
