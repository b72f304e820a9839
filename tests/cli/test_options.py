"""Options, help texts and the way errors are told."""

import subprocess
import sys
import time

import pytest
import typer
from command_line import environment, run

from cvllm_jax.cli import main as entry
from cvllm_jax.cli.options import EngineOptions, SamplingOptions, parse_size
from cvllm_jax.config import DType, EngineConfig

COMMANDS = typer.main.get_command(entry._app).commands


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("1.5GiB", 3 * 2**29), ("500 mb", 5 * 10**8), ("1234", 1234), ("64KiB", 65536), ("0", 0)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "2XB", "-1GB", "1e9", "2 G B", "nan", "1..5GB"])
def test_sizes_that_are_none(text):
    with pytest.raises(typer.BadParameter, match="no size"):
        parse_size(text)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_explains_itself(command):
    for parameter in COMMANDS[command].params:
        assert len(parameter.help or "") > 10, parameter.name


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_is_a_double_negation(command):
    names = [name for parameter in COMMANDS[command].params for name in (*parameter.opts, *parameter.secondary_opts)]
    assert not [name for name in names if name.startswith("--no-no-")]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_quick(command):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "cvllm_jax", *command.split(), "--help"],
        capture_output=True, text=True, env=environment(), check=True,
    )  # fmt: skip
    assert time.monotonic() - started < 2  # 0.4 s on an idle machine
    assert "Usage: cvllm-jax" in done.stdout


def test_help_loads_no_jax():
    code = "import sys, cvllm_jax.cli.main; print([m for m in ('jax', 'server', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.strip() == "[]"


def test_options_left_out_are_the_configs_defaults():
    assert EngineOptions().config("m") == EngineConfig(model_path="m")


def test_options_become_the_configuration():
    options = EngineOptions(
        device="cpu", dtype="f32", max_batch_size=3, kv_cache_memory=10**6, no_prefix_caching=True, no_warmup=True
    )
    config = options.config("m")
    assert (str(config.device), config.dtype, config.max_batch_size) == ("cpu", DType.F32, 3)
    assert (config.kv_cache_memory, config.enable_prefix_caching, config.warmup) == (10**6, False, False)
    assert config.enable_chunked_prefill


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "m", "--dtype", "int3"], "unknown dtype 'int3'"),
        (["serve", "m", "--device", "tpu"], "unknown device 'tpu'"),
        (["serve", "m", "--max-batch-size", "0"], "max_batch_size must be at least 1"),
        (["serve", "m", "--kv-cache-memory", "lots"], "'lots' is no size"),
        (["serve", "m", "--port", "99999"], "'--port'"),
        (["serve", "m", "--api-key", ""], "API key is empty"),
        (["generate", "hi", "--model", "m", "--raw", "--temperature", "-1"], "temperature must be at least 0"),
        (["generate", "hi", "--raw", "--system", "x"], "--raw"),
        (["generate"], "Missing argument"),
        (["nothing"], "No such command"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, words):
    status, _, err = run(*arguments)
    assert status == 2, err
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["serve", "broken", "--port", "0"], ["chat", "broken"]])
def test_errors_are_one_line_and_exit_with_1(arguments):
    status, out, err = run(*arguments)
    assert (status, out, err) == (1, "", "error: broken is no model\n")
    status, _, err = run(*arguments, CVLLM_DEBUG="1")
    assert status == 1
    assert "Traceback" in err


def test_sampling_options_become_request_fields():
    options = SamplingOptions(temperature=0.0, stop=["x"], max_tokens=5)
    assert options.request_fields() == {"temperature": 0.0, "stop": ["x"], "max_tokens": 5}
    assert SamplingOptions().request_fields() == {}
    params = options.params({"temperature": 0.5, "top_p": 0.9})
    assert (params.temperature, params.top_p, params.stop_sequences, params.max_tokens) == (0.0, 0.9, ("x",), 5)


def test_the_version_is_shown():
    status, out, _ = run("--version")
    assert status == 0
    assert out.startswith("cvllm-jax ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell):
    for typed, completed in (("ser", "serve"), ("serve --kv-cache-m", "--kv-cache-memory")):
        line = f"cvllm-jax {typed}"
        status, out, _ = run(
            _CVLLM_JAX_COMPLETE=f"complete_{shell}", COMP_WORDS=line, COMP_CWORD=str(len(typed.split())),
            _TYPER_COMPLETE_ARGS=line, _TYPER_COMPLETE_FISH_ACTION="get-args",
        )  # fmt: skip
        assert completed in out, (shell, status)
