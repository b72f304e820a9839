"""Options of compiled steps, and that XLA knows each of them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from cvllm_jax.engine.xla_options import compiler_options

GPU, CPU, TPU = (SimpleNamespace(platform=platform) for platform in ("gpu", "cpu", "tpu"))


@pytest.mark.parametrize("device", [GPU, CPU, TPU])
@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("enable_cuda_graph", [True, False])
@pytest.mark.parametrize("kind", ["prefill", "decode", "admit"])
def test_xla_takes_every_option(device, loops, enable_cuda_graph, kind, tmp_path):
    options = compiler_options(
        device, kind, enable_cuda_graph=enable_cuda_graph, loops=loops, autotune_cache=tmp_path / "autotune"
    )
    jax.jit(lambda x: x + 1).lower(jnp.ones(2)).compile(compiler_options=options)
    assert (tmp_path / "autotune").exists() == (device is GPU)


def test_cuda_graphs_can_be_turned_off():
    off = compiler_options(GPU, "decode", enable_cuda_graph=False)
    assert off["xla_gpu_enable_command_buffer"] == ""
    assert compiler_options(GPU, "decode", enable_cuda_graph=False, loops=True) == off
    assert compiler_options(GPU, "decode", enable_cuda_graph=True) == {}
    loops = compiler_options(GPU, "decode", enable_cuda_graph=True, loops=True)
    assert "WHILE" in loops["xla_gpu_enable_command_buffer"]
