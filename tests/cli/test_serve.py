"""`cvllm-jax serve` from start to signal."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from command_line import ROOT, environment, run, start

from cvllm_jax.cli.serve import curl_line

BODY = {"model": "org/stub", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def served():
    processes = []

    def serve(*arguments, **settings):
        process = start("serve", "m", "--port", "0", *arguments, **settings)
        processes.append(process)
        lines = [process.stdout.readline() for _ in range(3)]
        assert "is ready on http://127.0.0.1:" in lines[0], process.stderr.read()
        process.url = re.search(r"http://[\d.:]+\d", lines[0])[0]
        process.curl = lines[2]
        return process

    yield serve
    for process in processes:
        process.kill()
        process.communicate()


def end(process, timeout=10):
    """The exit status; nothing may have been said on standard error but progress."""
    _, err = process.communicate(timeout=timeout)
    assert err == "loading weights ...\n"
    return process.returncode


def test_the_printed_curl_line_works(served):
    process = served()
    assert httpx.get(f"{process.url}/health").json() == {"status": "ok", "model": "org/stub"}
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    done = subprocess.run(process.curl, shell=True, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "Hello, wörld 👋."


def test_the_curl_line_survives_odd_names():
    line = curl_line("http://x:1", 'it\'s "odd" $HOME')
    assert (
        json.loads(subprocess.run(f"printf %s {line.split(' -d ')[1]}", shell=True, capture_output=True).stdout)[
            "model"
        ]
        == 'it\'s "odd" $HOME'
    )
    assert "YOUR_API_KEY" in curl_line("http://x:1", "m", has_key=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_idle_server_at_once(served, number):
    process = served()
    httpx.get(f"{process.url}/health")
    started = time.monotonic()
    process.send_signal(number)
    assert end(process) == 0
    assert time.monotonic() - started < 2


def test_running_answers_are_finished_before_the_end(served):
    process = served("--drain-seconds", "10", script="text='x' * 30, delay=0.02")
    with httpx.stream("POST", f"{process.url}/v1/chat/completions", json=BODY | {"stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        rest = list(lines)
    assert sum('"content":"x"' in line for line in rest) == 30
    assert "data: [DONE]" in rest
    assert end(process) == 0


def test_answers_that_take_too_long_are_ended(served):
    process = served("--drain-seconds", "0.3", script="forever=True, delay=0.01")
    with httpx.stream("POST", f"{process.url}/v1/chat/completions", json=BODY | {"stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert any("shutting down" in line for line in rest)
    assert end(process) == 0


def test_an_engine_that_compiles_does_not_delay_the_end(served):
    process = served(script="close_delay=60.0")
    process.send_signal(signal.SIGTERM)
    assert end(process) == 0


def test_a_second_signal_ends_at_once(served):
    process = served("--drain-seconds", "60", script="forever=True, delay=0.01")
    with httpx.stream("POST", f"{process.url}/v1/chat/completions", json=BODY | {"stream": True}) as answer:
        lines = answer.iter_lines()  # dropping it would disconnect
        next(lines)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert end(process) == 0
        assert time.monotonic() - started < 2


def test_a_signal_while_loading_ends_cleanly():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start("serve", "m", "--port", str(port), load_seconds=60)
    wait_for_health(port)
    assert httpx.get(f"http://127.0.0.1:{port}/health").json()["progress"]["stage"] == "loading weights"
    process.send_signal(signal.SIGINT)
    assert end(process) == 0


def wait_for_health(port):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").json().get("progress", {}).get("total"):
                return
        except httpx.ConnectError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server does not answer")


def test_a_port_in_use_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, out, err = run("serve", "m", "--port", str(port))
    assert (status, out) == (1, "")
    assert err == f"error: cannot listen on 127.0.0.1:{port}: address already in use; choose another with --port\n"


def test_an_unknown_host_is_one_sentence():
    status, _, err = run("serve", "m", "--host", "no.such.host.invalid")
    assert status == 1
    assert "unknown on this machine" in err


@pytest.mark.parametrize("on_path", [False, True])
def test_a_users_own_server_module_does_not_shadow_ours(tmp_path, on_path):
    (tmp_path / "server.py").write_text("raise SystemExit('the wrong server')")
    paths = [str(tmp_path), str(ROOT)] if on_path else [str(ROOT)]
    if not on_path:
        (tmp_path / "typer.py").write_text("raise SystemExit('the wrong typer')")
    done = subprocess.run(
        [sys.executable, "-m", "cvllm_jax", "serve", "missing.gguf", "--port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=os.pathsep.join(paths)),
    )
    assert done.returncode == 1
    assert "missing.gguf" in done.stderr
