"""Engines whose weights are quantised while they load: true to what the weights became, and small."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvllm_jax import ConfigError, EngineConfig, GenerationParams, InferenceEngine, QuantizationConfig
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.engine.devices import mesh_of
from cvllm_jax.engine.loading import open_model, place_weights
from cvllm_jax.engine.scoring import prompt_logits
from cvllm_jax.models.layers import WeightLayout
from cvllm_jax.models.registry import family_for

PROMPT = [7, 30, 121, 5, 64, 200, 13, 2, 90, 41]
#: By method, the relative error of logits in norm that is its own.
METHODS = {"int8": 0.03, "int4": 0.3, "fp8": 0.15}
GROUPS = {"int4": 8}  # 32 do not divide the tiny model's 56 channels


def config(path, **settings):
    return EngineConfig(
        model_path=str(path), device="cpu", dtype="f32", max_batch_size=2, max_sequence_length=64,
        prefill_chunk_size=16, compilation_cache=False, **settings,
    )  # fmt: skip


def quantized(method, group_size=None):
    return QuantizationConfig(method=method, group_size=group_size)


@pytest.fixture(scope="module")
def plain_logits(tiny_model_path):
    with InferenceEngine(config(tiny_model_path, warmup=False)) as engine:
        return prompt_logits(engine, PROMPT)


@pytest.mark.parametrize("method", METHODS)
def test_an_engine_says_nearly_what_it_would_unquantized(method, tiny_model_path, plain_logits):
    warmup = method == "int8"  # once: that takes the longest
    settings = config(tiny_model_path, warmup=warmup, quantization=quantized(method, GROUPS.get(method)))
    with InferenceEngine(settings) as engine:
        info, leaves = engine.model_info(), engine.runner.leaves
        logits = prompt_logits(engine, PROMPT)
        compiled = engine.stats().compilations
        chosen = engine.generate_sync(PROMPT, GenerationParams(max_tokens=4, temperature=0.0, ignore_eos=True)).tokens
        assert engine.stats().compilations == compiled or not warmup
    assert np.linalg.norm(logits - plain_logits) < METHODS[method] * np.linalg.norm(plain_logits)
    assert chosen[0] == logits[-1].argmax()
    assert info.quantization == method
    assert {str(leaf.dtype) for leaf in leaves} >= {str(jnp.dtype({"fp8": "float8_e4m3fn"}.get(method, method)))}


@pytest.mark.parametrize("method", METHODS)
def test_every_family_can_be_quantized(method, pytestconfig):
    """All of a model's matrices shrink, whatever the family; what the numbers become is tested with the loader."""
    mesh, layout = mesh_of(jax.devices("cpu")[:1]), WeightLayout(method=method)
    folders = [path.parent for path in pytestconfig.rootpath.glob("tests/golden/families/*/config.json")]
    assert folders
    for folder in folders:
        with open_checkpoint(folder) as checkpoint:
            family = family_for(checkpoint.config)
            model = family.config({**checkpoint.config, "max_sequence_length": 48})
            if getattr(model, "experts", None) is not None:
                with pytest.raises(ConfigError, match="stack of experts, which is not supported yet"):
                    place_weights(family, model, checkpoint, jnp.float32, mesh, config(folder), layout)
                continue
            plain = place_weights(family, model, checkpoint, jnp.float32, mesh, config(folder))
            small = place_weights(family, model, checkpoint, jnp.float32, mesh, config(folder), layout)
        assert small.parameters == plain.parameters
        before = sum(leaf.size for leaf in plain.leaves if leaf.ndim == 2)
        wide = sum(leaf.size for leaf in small.leaves if leaf.ndim == 2 and leaf.dtype == jnp.float32 and len(leaf) > 1)
        # embeddings stay under fp8; some norms have a gain for each dimension of each head
        assert wide < before * (0.6 if method == "fp8" else 0.02), folder.name


def test_groups_are_as_long_as_was_asked(tiny_model_path):
    with InferenceEngine(config(tiny_model_path, warmup=False, quantization=quantized("int4", 8))) as engine:
        scales = [leaf for leaf in engine.runner.leaves if leaf.dtype == jnp.bfloat16]
        widths = {leaf.shape[1] for leaf in engine.runner.leaves if leaf.dtype == jnp.int4}
    assert scales and {8 * len(leaf) for leaf in scales} == widths


def test_random_weights_can_be_quantized(tiny_model_path):
    settings = replace(config(tiny_model_path, warmup=False, quantization=quantized("int4", 8)), load_format="dummy")
    with InferenceEngine(settings) as engine:
        assert np.isfinite(prompt_logits(engine, PROMPT)).all()
        values = [leaf.astype(jnp.int8) for leaf in engine.runner.leaves if leaf.dtype == jnp.int4]
    assert values and all(jnp.abs(value).max() == 7 for value in values)


def test_a_scripted_model_has_nothing_to_quantize(tmp_path):
    script = tmp_path / "script.json"
    script.write_text('[{"when": "", "say": "yes"}]')
    settings = config(f"scripted:{script}", quantization=quantized("int8"))
    with open_model(replace(settings, quantization=None)):
        pass
    with pytest.raises(ConfigError, match="a scripted model has no weights to quantize"):
        InferenceEngine(settings)
