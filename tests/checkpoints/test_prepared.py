"""Prepared checkpoints: what is written is what loads, whole or not at all, on any number of devices."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_llama import llama_tensors, write_folder, write_gguf

from cvllm_jax import ConfigError, EngineConfig, ModelLoadError, QuantizationConfig
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.prepared import MANIFEST, VERSION
from cvllm_jax.engine.converting import convert
from cvllm_jax.engine.devices import mesh_of
from cvllm_jax.engine.loading import open_model, place_weights
from cvllm_jax.engine.weight_layouts import target_name, weight_layouts
from cvllm_jax.errors import IoError
from cvllm_jax.models.registry import family_for

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = GOLDEN.parents[1]


def config(path, quantization=None, dtype="f32"):
    asked = None if quantization is None else QuantizationConfig.parse(quantization)
    return EngineConfig(model_path=str(path), device="cpu", dtype=dtype, quantization=asked)


def weights_of(settings, mesh=None):
    """The arrays that an engine would have, by name."""
    device = jax.devices("cpu")[0]
    dtype = {"f32": jnp.float32, "bf16": jnp.bfloat16}[settings.dtype.value]
    with open_model(settings) as checkpoint:
        family = family_for(checkpoint.config)
        model = family.config(checkpoint.config)
        layouts = weight_layouts(settings, checkpoint, dtype, device, family, model)
        weights = place_weights(family, model, checkpoint, dtype, mesh or mesh_of([device]), settings, layouts)
    state = jax.tree.unflatten(weights.treedef, weights.leaves)
    return {target_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def require_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(np.asarray(array), np.asarray(theirs[name]), err_msg=name)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("source") / "tiny", llama_tensors())


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    return convert(config(source, "int8"), tmp_path_factory.mktemp("prepared") / "tiny-int8").path


@pytest.fixture
def copy(prepared, tmp_path):
    """A prepared checkpoint to damage."""
    return shutil.copytree(prepared, tmp_path / "copy")


@pytest.mark.parametrize("quantization", [None, "int8", "int8:32", "int4", "fp8"])
def test_what_is_written_is_what_loads(source, tmp_path, quantization):
    made = convert(config(source, quantization), tmp_path / "out")
    assert made.quantization == (quantization and quantization.partition(":")[0])
    require_same(weights_of(config(made.path)), weights_of(config(source, quantization)))
    require_same(weights_of(config(made.path, quantization)), weights_of(config(made.path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    "case",
    ["families/gemma3", "families/qwen3_moe", "families/gpt_oss_mxfp4", "families/deepseek_v3", "families/phi", "llama/llama_mha_untied"],
)  # fmt: skip
def test_families_and_formats(case, tmp_path):
    made = convert(config(GOLDEN / case, dtype="bf16"), tmp_path / "out")
    require_same(weights_of(config(made.path, dtype="bf16")), weights_of(config(GOLDEN / case, dtype="bf16")))
