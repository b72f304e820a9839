"""Engines whose weights are quantised while they load: true to what the weights became, and small."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import core
from flax import nnx

from cvllm_jax import ConfigError, EngineConfig, GenerationParams, InferenceEngine, QuantizationConfig
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.engine.devices import mesh_of
from cvllm_jax.engine.loading import open_model, place_weights
from cvllm_jax.engine.scoring import prompt_logits
from cvllm_jax.models.layers import Weighted, WeightLayout
from cvllm_jax.models.quantizing import quantize_weights
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


@pytest.mark.parametrize("method", core(METHODS, 2))
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
    assert {str(leaf.dtype) for leaf in leaves} >= {"int8" if method == "int8" else "uint8"}


@pytest.mark.parametrize(
    "method", ["int4", pytest.param("int8", marks=pytest.mark.slow), pytest.param("fp8", marks=pytest.mark.slow)]
)
def test_every_family_can_be_quantized(method, pytestconfig):
    """All of a model's matrices shrink, whatever the family; what the numbers become is tested with the loader."""
    mesh, layout = mesh_of(jax.devices("cpu")[:1]), WeightLayout(method=method)
    folders = [path.parent for path in pytestconfig.rootpath.glob("tests/golden/families/*/config.json")]
    assert folders
    for folder in folders:
        with open_checkpoint(folder) as checkpoint:
            family = family_for(checkpoint.config)
            model = family.config({**checkpoint.config, "max_sequence_length": 48})
            plain = place_weights(family, model, checkpoint, jnp.float32, mesh, config(folder))
            small = place_weights(family, model, checkpoint, jnp.float32, mesh, config(folder), layout)
        assert small.parameters == plain.parameters
        before, wide = matrices(plain), matrices(small)
        # embeddings stay under fp8; some norms have a gain for each dimension of each head
        assert sum(wide.values()) < sum(before.values()) * (0.6 if method == "fp8" else 0.02), folder.name


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3", "qwen3_next", "mixtral"])
def test_int4_leaves_attention_in_int8(name, pytestconfig):
    """As it does embeddings: there it would cost the most, for the fewest bytes."""
    with open_checkpoint(pytestconfig.rootpath / "tests" / "golden" / "families" / name) as checkpoint:
        family = family_for(checkpoint.config)
        model = nnx.eval_shape(lambda: family.module(family.config(checkpoint.config), jnp.float32))
    quantize_weights(model, WeightLayout(method="int4", group_size=4, offsets=True))
    methods = {"int8": set(), "int4": set()}
    for path, part in nnx.iter_modules(model):
        if isinstance(part, Weighted) and part.layout is not None:
            assert part.layout.group_size == {"int8": None, "int4": 4}[part.layout.method]
            methods[part.layout.method].add(path[-1])
    assert methods["int4"] & {"gate_up", "up"} and "down" in methods["int4"]
    assert methods["int8"] >= {"embed", "output"} and methods["int8"] & {"qkv", "kv_a"}
    assert not (methods["int8"] & methods["int4"])


def matrices(weights):
    """Sizes of what is in float32, less what always is: routers, indexers, products with latent vectors."""
    paths = jax.tree_util.tree_flatten_with_path(jax.tree.unflatten(weights.treedef, weights.leaves))[0]
    names = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
    return {
        name: leaf.size
        for name, leaf in names.items()
        if leaf.dtype == jnp.float32 and leaf.ndim > 1 and leaf.shape[-2] > 1
        and not any(part in name for part in ("router", "kv_b", "indexer", "scales", "offsets", "bias"))
    }  # fmt: skip


def test_groups_are_as_long_as_was_asked(tiny_model_path):
    with InferenceEngine(config(tiny_model_path, warmup=False, quantization=quantized("int4", 8))) as engine:
        scales = [leaf for leaf in engine.runner.leaves if leaf.dtype == jnp.float16]
        widths = {2 * leaf.shape[1] for leaf in engine.runner.leaves if leaf.dtype == jnp.uint8}
    assert scales and {8 * len(leaf) for leaf in scales} == widths


def test_random_weights_can_be_quantized(tiny_model_path):
    settings = replace(config(tiny_model_path, warmup=False, quantization=quantized("int4", 8)), load_format="dummy")
    with InferenceEngine(settings) as engine:
        assert np.isfinite(prompt_logits(engine, PROMPT)).all()
        values = [np.asarray(leaf) for leaf in engine.runner.leaves if leaf.dtype == jnp.uint8]
    assert set(np.unique(np.concatenate([value.reshape(-1) & 15 for value in values]))) == set(range(16)) - {8}


def test_a_scripted_model_has_nothing_to_quantize(tmp_path):
    script = tmp_path / "script.json"
    script.write_text('[{"when": "", "say": "yes"}]')
    settings = config(f"scripted:{script}", quantization=quantized("int8"))
    with open_model(replace(settings, quantization=None)):
        pass
    with pytest.raises(ConfigError, match="a scripted model has no weights to quantize"):
        InferenceEngine(settings)
