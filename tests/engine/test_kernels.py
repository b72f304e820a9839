"""Which kernels an engine uses, why, and that its tokens do not depend on them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from cvllm_jax import ConfigError
from cvllm_jax.engine.kernels import Geometry, choose_kernels
from cvllm_jax.models.layers import Kernels

LLAMA_8B = Geometry(
    heads=32, kv_heads=8, head_dim=128, page_size=16, dtype=jnp.bfloat16, cache_dtype=jnp.bfloat16
)  # fmt: skip
HOPPER = SimpleNamespace(platform="gpu", compute_capability="9.0", device_kind="NVIDIA H100 80GB HBM3")


def test_a_cpu_and_an_older_gpu_run_xla():
    turing = SimpleNamespace(platform="gpu", compute_capability="7.5", device_kind="Tesla T4")
    for device, wanted, reason in ((jax.devices()[0], "xla", "asked for"), (turing, "auto", "compute capability 7.5")):
        choices = choose_kernels(LLAMA_8B, device, wanted)
        assert choices.kernels == Kernels("xla", "xla")
        assert reason in choices.attention.reason and reason in choices.kv_write.reason


def test_a_hopper_gpu_runs_the_kernels_for_shapes_that_they_do():
    assert choose_kernels(LLAMA_8B, HOPPER, trial=False).kernels == Kernels("hopper", "hopper")
    for cache in (jnp.int8, jnp.float8_e4m3fn):
        bytes_ = Geometry(heads=32, kv_heads=8, head_dim=128, page_size=64, dtype=jnp.bfloat16, cache_dtype=cache)
        assert choose_kernels(bytes_, HOPPER, trial=False).kernels == Kernels("hopper", "hopper")
    odd = Geometry(heads=32, kv_heads=8, head_dim=80, page_size=16, dtype=jnp.bfloat16, cache_dtype=jnp.bfloat16)
    choices = choose_kernels(odd, HOPPER, trial=False)
    assert choices.kernels == Kernels("xla", "xla") and "head dims 64, 128 and 256, not 80" in choices.attention.reason
    with pytest.raises(ConfigError, match=r"the Hopper kernel for attention cannot run: .* not 80"):
        choose_kernels(odd, HOPPER, "hopper", trial=False)
    assert choose_kernels(LLAMA_8B, HOPPER, "xla", trial=False).kernels == Kernels("xla", "xla")


SMALL = Geometry(heads=2, kv_heads=1, head_dim=64, page_size=16, dtype=jnp.bfloat16, cache_dtype=jnp.bfloat16)


@pytest.fixture
def hopper_cpu(monkeypatch):
    """The CPU under the name of an H100: kernels are chosen, and run in Mosaic's interpreter or not at all."""
    monkeypatch.setattr("pallas_kernels.paged_attention.api.hopper_refusal", lambda device: None)
    monkeypatch.setattr("pallas_kernels.kv_write.api.hopper_refusal", lambda device: None)
    return jax.devices()[0]


def test_a_kernel_that_fails_its_trial_is_not_used(hopper_cpu, tmp_path, caplog):
    """Outside of the interpreter the kernels do not compile for a CPU, as they may not for some driver."""
    choices = choose_kernels(SMALL, hopper_cpu, store=tmp_path / "trials")
    assert choices.kernels == Kernels("xla", "xla")
    assert "the kernel failed its trial on this device" in choices.attention.reason
    assert "the kernel for attention is not used" in caplog.text and not list(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="failed its trial"):
        choose_kernels(SMALL, hopper_cpu, "hopper")


def test_a_kernel_that_computes_something_else_fails_its_trial(hopper_cpu, monkeypatch):
    from cvllm_jax.engine import kernels

    def off_by(factor):
        return lambda name, geometry: [jnp.arange(8.0) * (factor if name == "hopper" else 1)]

    monkeypatch.setattr(kernels, "_write", off_by(1.01))
    for factor, difference in ((1.25, "0.25"), (float("nan"), "nan")):
        monkeypatch.setattr(kernels, "_attend", off_by(factor))
        choices = choose_kernels(SMALL, hopper_cpu)
        assert choices.kernels == Kernels("xla", "hopper")
        assert f"differs from the XLA form by {difference} in relative norm" in choices.attention.reason


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["auto", "int8", "fp8"])
def test_an_engine_says_the_same_with_the_kernels(tmp_path, cache):
    """Trials, prefill and decoding of a small bf16 model in Mosaic's interpreter; tokens where the margin is clear."""
    environment = os.environ | {
        # the interpreter runs each warpgroup in a thread of XLA's pool, which has one for each processor or device
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "CVLLM_CACHE": str(tmp_path),
    }  # fmt: skip
    script = Path(__file__).with_name("engine_in_interpreter.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, cache], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["kernels"] == {"xla": ["xla", "xla", "xla"], "auto": ["hopper", "hopper", "xla"]}
    assert printed["trials"] == 2
    for got, want in zip(printed["auto"], printed["xla"], strict=True):
        assert got["logprobs"][0] == pytest.approx(want["logprobs"][0], abs=0.05)
        for token, expected, margin in zip(got["tokens"], want["tokens"], want["margins"], strict=True):
            if margin < 0.05:
                break
            assert token == expected
