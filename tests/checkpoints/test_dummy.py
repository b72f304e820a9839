"""Random weights: which shapes there are, where the arrays come from, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvllm_jax import ConfigError, EngineConfig, GenerationParams, InferenceEngine, ModelLoadError
from cvllm_jax.checkpoints.dummy import SHAPES, open_dummy, random_weights
from cvllm_jax.models.registry import family_for

ROOT = Path(__file__).parents[2]

#: Parameters that the models' cards state, in millions.
PARAMETERS = {"llama-3.1-8b": 8030, "llama-3.2-1b": 1236, "mistral-7b": 7248}


@pytest.fixture(scope="module")
def shape_only(tmp_path_factory, tiny_model_path):
    """A folder with nothing but a configuration."""
    folder = tmp_path_factory.mktemp("shape")
    (folder / "config.json").write_bytes((tiny_model_path / "config.json").read_bytes())
    return folder


@pytest.fixture(scope="module")
def engine(make_engine, shape_only):
    return make_engine(model_path=str(shape_only), load_format="dummy", max_batch_size=2)


@pytest.mark.parametrize("name", SHAPES)
def test_named_shapes_have_the_size_of_their_models(name):
    from flax import nnx

    checkpoint = open_dummy(name)
    family = family_for(checkpoint.config)
    config = family.config(checkpoint.config)
    state = nnx.state(nnx.eval_shape(lambda: family.module(config, jnp.bfloat16)), nnx.Param)
    assert round(sum(leaf.size for leaf in jax.tree.leaves(state)) / 1e6) == PARAMETERS[name]
    assert checkpoint.name == name and checkpoint.eos_token_ids == (config.vocab_size - 1,)


@pytest.mark.parametrize("source", ["llama-9", "", "no/such", "a" * 9999, "\0", __file__])
def test_other_names_are_refused_with_the_list(source):
    with pytest.raises(ModelLoadError, match=r"no shape with random weights .* llama-3\.1-8b, .*, mistral-7b"):
        open_dummy(source)


def test_a_vocabulary_size_is_needed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ModelLoadError, match="no vocab_size"):
        open_dummy(str(tmp_path))


def test_a_revision_has_no_place_there(shape_only):
    with pytest.raises(ConfigError, match="load_format is dummy"):
        InferenceEngine(EngineConfig(model_path=str(shape_only), load_format="dummy", revision="main"))


def test_weights_differ_from_each_other_and_repeat():
    structs = {
        "layers.0.norm": jax.ShapeDtypeStruct((8,), jnp.float32),
        "layers.0.out_bias": jax.ShapeDtypeStruct((8,), jnp.bfloat16),
        "layers.0.out": jax.ShapeDtypeStruct((64, 128), jnp.bfloat16),
        "layers.1.out": jax.ShapeDtypeStruct((64, 128), jnp.bfloat16),
    }
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    told = []
    weights = random_weights(structs, dict.fromkeys(structs, place), lambda *args: told.append(args))
    again = random_weights(structs, dict.fromkeys(structs, place))
    assert {name: (w.shape, w.dtype) for name, w in weights.items()} == {
        name: (s.shape, s.dtype) for name, s in structs.items()
    }
    assert (weights["layers.0.norm"] == 1).all() and (weights["layers.0.out_bias"] == 0).all()
    first, second = (np.asarray(weights[f"layers.{i}.out"], np.float32) for i in (0, 1))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05
    assert first.std() == pytest.approx(0.02, rel=0.05) and abs(first.mean()) < 1e-3
    assert all((weights[name] == again[name]).all() for name in structs)
    assert told[-1] == ("making random weights", 4, 4)


def test_the_engine_runs_and_makes_the_same_tokens_again(engine):
    info = engine.model_info()
    assert (info.vocab_size, info.eos_token_ids, info.quantization) == (288, (287,), None)
    params = GenerationParams(max_tokens=12, temperature=1.0, seed=3, ignore_eos=True)
    first, again = (engine.generate_sync("Grüße", params) for _ in range(2))
    assert first.tokens == again.tokens and len(first.tokens) == 12 and len(set(first.tokens)) > 4


def test_chats_have_a_template(engine):
    prompt = engine.chat_template.encode([{"role": "user", "content": "<|end|> 😀"}])
    assert engine.detokenize(prompt) == "user: <|end|> 😀\nassistant: "
    assert 287 not in prompt  # what spells a control token is text


def test_the_engine_needs_no_package_for_files_or_wire_types(shape_only):
    """Where speed is measured there may be neither pydantic nor gguf nor the hub's library."""
    code = f"""
import sys
blocked = ("pydantic", "gguf", "huggingface_hub", "starlette", "uvicorn", "httpx")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from cvllm_jax import EngineConfig, GenerationParams, InferenceEngine
config = EngineConfig(
    model_path={str(shape_only)!r}, load_format="dummy", dtype="f32", device="cpu", max_batch_size=2,
    max_sequence_length=256, prefill_chunk_size=64, warmup=False,
)
with InferenceEngine(config) as engine:
    print(len(engine.generate_sync("hello", GenerationParams(max_tokens=4, ignore_eos=True)).tokens))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "4", done.stderr
