"""Valid files with random damage: an error of the library or a load, never anything else."""

import json
import tempfile
import warnings
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import CONFIG, llama_targets, llama_tensors, write_folder, write_gguf

from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.loading import load_weights
from cvllm_jax.checkpoints.mappings.llama import RULES
from cvllm_jax.errors import IoError, ModelLoadError

SMALL = CONFIG | {"num_hidden_layers": 1, "vocab_size": 32}


@cache
def gguf_content() -> bytes:
    def extra(writer):
        writer.add_token_list([f"t{index}" for index in range(32)])
        writer.add_token_types([1] * 32)
        writer.add_chat_template("<|im_end|>")

    with tempfile.TemporaryDirectory() as folder:
        path = write_gguf(Path(folder) / "a.gguf", llama_tensors(SMALL), SMALL, kind=Kind.Q4_0, extra=extra)
        return path.read_bytes()


@cache
def safetensors_content() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return (write_folder(Path(folder), llama_tensors(SMALL), SMALL) / "model.safetensors").read_bytes()


@st.composite
def damaged(draw, make, header):
    """Content with bytes changed, removed or inserted, mostly where the structure is."""
    content = bytearray(make())
    header_size = header(content)
    for _ in range(draw(st.integers(1, 4))):
        limit = header_size if draw(st.integers(0, 9)) else len(content)
        position = draw(st.integers(0, max(0, min(limit, len(content)) - 1)))
        match draw(st.sampled_from(["flip", "number", "remove", "insert", "cut"])):
            case "flip":
                content[position : position + 1] = draw(st.binary(min_size=1, max_size=1))
            case "number":  # a field of eight bytes becomes a count that hurts
                number = draw(st.sampled_from([0, 1, 2**16, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1]))
                content[position : position + 8] = number.to_bytes(8, "little")
            case "remove":
                del content[position : position + draw(st.integers(1, 64))]
            case "insert":
                content[position:position] = draw(st.binary(min_size=1, max_size=64))
            case "cut":
                del content[position:]
    return bytes(content)


def survives(source: Path) -> None:
    try:
        with open_checkpoint(source) as checkpoint, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged scales overflow
            targets = llama_targets(SMALL, jnp.bfloat16)
            loaded = load_weights(checkpoint, RULES, targets, lambda name, array: array, use_cache=False)
            assert {name: array.shape for name, array in loaded.items()} == {
                name: target.shape for name, target in targets.items()
            }
    except (ModelLoadError, IoError) as error:
        message = str(error)
    else:
        return
    assert "\n" not in message
    assert len(message) < 5000


@settings(max_examples=400, deadline=2000)
@given(damaged(gguf_content, lambda content: content.find(b"token_embd") + 1500))
def test_damaged_gguf_files(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.gguf"
        path.write_bytes(content)
        survives(path)


@settings(max_examples=400, deadline=2000)
@given(damaged(safetensors_content, lambda content: 8 + int.from_bytes(content[:8], "little")))
def test_damaged_safetensors_files(content):
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), {"model.norm.weight": np.ones(1, np.float32)}, SMALL)
        (Path(folder) / "model.safetensors").write_bytes(content)
        survives(Path(folder))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=2000)
@given(
    st.dictionaries(st.sampled_from([*SMALL, "quantization_config", "head_dim"]), JSON),
    st.dictionaries(st.sampled_from(["eos_token_id", "temperature", "top_k", "top_p", "do_sample"]), JSON),
)
def test_odd_values_in_the_configuration_files(config, generation):
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), llama_tensors(SMALL), SMALL)
        (Path(folder) / "config.json").write_text(json.dumps(SMALL | config))
        (Path(folder) / "generation_config.json").write_text(json.dumps(generation))
        survives(Path(folder))


@settings(max_examples=150, deadline=2000)
@given(
    st.dictionaries(
        st.sampled_from(["model.norm.weight", "a", "b"]),
        JSON
        | st.sampled_from(["model.safetensors", "../x.safetensors", "s.safetensors", "model.safetensors.index.json"]),
    )
)
def test_odd_shard_indices(weight_map):
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), llama_tensors(SMALL), SMALL)
        (Path(folder) / "model.safetensors").rename(Path(folder) / "s.safetensors")
        (Path(folder) / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        survives(Path(folder))


def test_an_architecture_whose_heads_are_unknown_is_no_reason_to_guess(tmp_path):
    """Found by the damage above: the architecture's name is one letter off, so none of its keys were read."""
    path = tmp_path / "a.gguf"
    length = (5).to_bytes(8, "little")
    path.write_bytes(gguf_content().replace(length + b"llama", length + b"lamma"))
    with open_checkpoint(path) as checkpoint, pytest.raises(ModelLoadError, match="without num_attention_heads"):
        load_weights(checkpoint, RULES, llama_targets(SMALL), lambda _, array: jnp.asarray(array), use_cache=False)
