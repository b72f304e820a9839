"""Latent attention, with and without an indexer, in few bits: of the weights and of the cache."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from paged_text import PAGE_SIZE, Text
from safetensors.numpy import load_file
from test_quantized_experts import load, write_safetensors

from cvllm_jax import EngineConfig
from cvllm_jax.engine.devices import geometry_of
from cvllm_jax.engine.kernels import empty_pages

GOLDEN = Path(__file__).parents[1] / "golden" / "families"
FEW = 7  # tokens, which attend to one another whatever the indexer says: rounding may select others among more


def expected_of(case):
    expected = np.load(GOLDEN / case / "expected.npz")
    return expected["prompt"][:FEW], expected["logits"][:FEW]


def difference(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("case", ["deepseek_v2_options", "deepseek_v32_options"])
def test_weights_are_rounded_while_they_load(case):
    prompt, logits = expected_of(case)
    _, model, weights = load(GOLDEN / case, "int8")
    assert "int8" in {str(leaf.dtype) for leaf in weights.leaves}
    assert difference(Text(model, weights, FEW).add(prompt, FEW), logits) < 0.06


@pytest.mark.parametrize("cache", ["int8", "fp8"])
def test_the_cache_in_few_bits(cache):
    prompt, logits = expected_of("deepseek_v32_options")
    _, model, weights = load(GOLDEN / "deepseek_v32_options")
    text = Text(model, weights, FEW)
    config = EngineConfig(model_path="-", page_size=PAGE_SIZE, kv_cache_dtype=cache)
    text.cache = tuple(empty_pages(geometry_of(config, model, jnp.float32), 2) for _ in range(model.num_layers))
    assert [leaf.dtype.itemsize for leaf in text.cache[0]] == [1, 1, 4, 4]
    got = [text.add(prompt[:-1], FEW), text.add(prompt[-1:], 1)]
    assert difference(np.concatenate(got), logits) < 0.1


def test_a_folder_in_fp8_stays_so(tmp_path):
    """Latent vectors' own matrix, which is no product of activations, is a plain one."""
    tensors = {}
    for name, tensor in load_file(GOLDEN / "deepseek_v32_options" / "model.safetensors").items():
        values = tensor.astype(np.float32)
        plain = values.ndim != 2 or any(part in name for part in ("embed", "lm_head", ".gate.", "weights_proj"))
        if plain:
            tensors[name] = values
            continue
        scales = np.linspace(0.01, 0.02, -(-len(values) // 16), dtype=np.float32)[:, None]
        spread = np.repeat(scales, 16, axis=0)[: len(values)]
        tensors |= {name: (values / spread).astype(ml_dtypes.float8_e4m3fn), f"{name}_scale_inv": scales}
    config = json.loads((GOLDEN / "deepseek_v32_options" / "config.json").read_text())
    config |= {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 48]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "model.safetensors", tensors)
    layouts, model, weights = load(tmp_path)
    assert {layout.method for layout in layouts.values()} == {"fp8"}
    assert {"layers.0.attention.indexer.k", "layers.0.attention.kv_a"} <= set(layouts)
    attention = jax.tree.unflatten(weights.treedef, weights.leaves)["layers"][0]["attention"]
    assert attention["kv_a"]["weight"][...].dtype == jnp.uint8  # bytes of float8
    assert attention["kv_b"][...].dtype == jnp.float32
    _, _, plain = load(tmp_path, "none")
    prompt, _ = expected_of("deepseek_v32_options")
    kept, dequantised = (Text(model, each, FEW).add(prompt, FEW) for each in (weights, plain))
    assert difference(kept, dequantised) < 0.06  # products round activations
