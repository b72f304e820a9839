"""Prepared checkpoints: what is written is what loads, whole or not at all, on any number of devices."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from tiny_llama import llama_tensors, write_folder, write_gguf

from cvllm_jax import (
    ConfigError,
    EngineConfig,
    GenerationParams,
    InferenceEngine,
    IoError,
    ModelLoadError,
    QuantizationConfig,
)
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.prepared import MANIFEST, VERSION
from cvllm_jax.engine.converting import convert
from cvllm_jax.engine.devices import mesh_of
from cvllm_jax.engine.embedding import EmbeddingEngine
from cvllm_jax.engine.loading import open_model, place_weights
from cvllm_jax.engine.weight_layouts import target_name, weight_layouts
from cvllm_jax.models.layers import WeightLayout
from cvllm_jax.models.registry import family_for
from cvllm_jax.text import ChatTemplate, Tokenizer

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
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["out"]


@pytest.mark.parametrize(
    "case",
    ["families/gemma3", "families/qwen3_moe", "families/gpt_oss_mxfp4", "families/deepseek_v3", "families/phi",
     "llama/llama_mha_untied"],
)  # fmt: skip
def test_families_and_formats(case, tmp_path):
    made = convert(config(GOLDEN / case, dtype="bf16"), tmp_path / "out")
    require_same(weights_of(config(made.path, dtype="bf16")), weights_of(config(GOLDEN / case, dtype="bf16")))


def test_a_gguf_file_keeps_its_tokenizer_template_and_configuration(tmp_path):
    def extra(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(["<u>", "<s>", "</s>", "a", "b", "ab", *[f"t{index}" for index in range(58)]])
        writer.add_token_types([3] * 3 + [1] * 61)
        writer.add_token_merges(["a b"])
        writer.add_chat_template("{{ messages[0].content }}ab")

    path = write_gguf(tmp_path / "tiny.gguf", llama_tensors(), kind=GGMLQuantizationType.Q4_0, extra=extra)
    made = convert(config(path, dtype="bf16"), tmp_path / "out")
    assert made.quantization == "int8"  # as engines on CPUs have it
    with open_checkpoint(path) as source, open_checkpoint(made.path) as ours:
        assert (ours.config, ours.eos_token_ids) == (source.config, source.eos_token_ids)
        theirs, tokenizer = Tokenizer.from_checkpoint(source), Tokenizer.from_checkpoint(ours)
        assert tokenizer.encode("abba") == theirs.encode("abba") == [5, 4, 3]
        template = ChatTemplate.from_checkpoint(ours, tokenizer)
    assert template.render([{"role": "user", "content": "b"}]) == "bab"
    require_same(weights_of(config(made.path, dtype="bf16")), weights_of(config(path, dtype="bf16")))


def test_an_engine_says_the_same(tiny_model_path, tmp_path):
    settings = replace(
        config(tiny_model_path, "int4:8"), max_batch_size=1, max_sequence_length=64, prefill_chunk_size=16,
        warmup=False,
    )  # fmt: skip
    made = convert(settings, tmp_path / "out")
    outputs = []
    for path in (tiny_model_path, made.path):
        asked = settings.quantization if path == tiny_model_path else None
        with InferenceEngine(replace(settings, model_path=str(path), quantization=asked)) as engine:
            prompt = engine.chat_template.encode([{"role": "user", "content": "Hello"}])
            params = GenerationParams(max_tokens=12, temperature=0.0, ignore_eos=True)
            info = engine.model_info()
            outputs.append((prompt, engine.generate_sync(prompt, params).tokens, info.quantization, info.parameters))
    assert outputs[0] == outputs[1]


def test_embedding_models(tmp_path):
    folder = next(path.parent for path in GOLDEN.glob("bert/*/modules.json"))
    vectors = []
    for path in (folder, convert(config(folder), tmp_path / "out").path):
        settings = replace(config(path), warmup=False, max_batch_size=1, prefill_chunk_size=16)
        with EmbeddingEngine(settings) as engine:
            vectors.append((engine.pooling, engine.embed_sync([[1, 2, 3]]).vectors.tolist()))
    assert vectors[0] == vectors[1]


def test_plain_numbers_can_be_rounded_later_and_have_another_type(source, tmp_path):
    made = convert(config(source), tmp_path / "out")
    require_same(weights_of(config(made.path, "int8")), weights_of(config(source, "int8")))
    require_same(weights_of(config(made.path, dtype="bf16")), weights_of(config(source, dtype="bf16")))
    again = convert(config(made.path, "int4"), tmp_path / "again")
    require_same(weights_of(config(again.path)), weights_of(config(source, "int4")))


@pytest.mark.parametrize("quantization", ["int4", "int8:32", "none"])
def test_another_quantization_is_refused(prepared, quantization):
    with pytest.raises(ConfigError, match=r"was prepared with weights in int8 and cannot be loaded with the quant"):
        weights_of(config(prepared, quantization))


def test_orbax_restores_it(prepared):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(prepared / "weights")
    require_same(restored, weights_of(config(prepared)))


def test_parts_go_to_their_devices(prepared):
    """In a process of its own, because the number of devices is decided once."""
    code = f"""
import jax, numpy as np
from test_prepared import config, weights_of
from cvllm_jax.engine.devices import mesh_of
whole = weights_of(config({str(prepared)!r}))
split = weights_of(config({str(prepared)!r}), mesh_of(jax.devices("cpu")))
parts = [name for name, array in split.items() if not array.sharding.is_fully_replicated]
assert "layers.0.attention.qkv" in parts and "layers.1.mlp.down" in parts, parts
for name, array in split.items():
    assert len(array.sharding.device_set) == 2
    np.testing.assert_array_equal(np.asarray(array), np.asarray(whole[name]))
"""
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    variables = os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", code], env=variables, check=True)


def test_a_place_that_is_taken(source, prepared, tmp_path):
    with pytest.raises(IoError, match="exists already"):
        convert(config(source), prepared)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(IoError, match="is not a prepared checkpoint"):
        convert(config(source), tmp_path / "mine", overwrite=True)
    with pytest.raises(IoError, match="there is no folder"):
        convert(config(source), tmp_path / "no" / "where")
    old = shutil.copytree(prepared, tmp_path / "old")
    assert convert(config(source), old, overwrite=True).quantization is None
    require_same(weights_of(config(old)), weights_of(config(source)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "old"]


@pytest.mark.parametrize("moment", ["_write_arrays", pytest.param("_rename", marks=pytest.mark.slow)])
def test_a_killed_conversion_leaves_nothing_that_looks_whole(source, tmp_path, moment):
    code = f"""
import os, signal
from test_prepared import config
from cvllm_jax.checkpoints import preparing
from cvllm_jax.engine.converting import convert
work = preparing.{moment}
def killed(*arguments, **options):
    if {moment!r} == "_write_arrays":
        work(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
preparing.{moment} = killed
convert(config({str(source)!r}), {str(tmp_path / "out")!r})
"""
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".out.converting-")
    assert (left / MANIFEST).exists() == (moment == "_rename")  # then it is whole, and has no name yet
    convert(config(source), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def refusal(folder):
    begun = time.perf_counter()
    with pytest.raises(ModelLoadError) as caught:
        weights_of(config(folder))
    assert time.perf_counter() - begun < 1
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1500
    return message


def test_what_is_too_new_is_refused(copy):
    edit(copy, version=VERSION + 1)
    message = refusal(copy)
    assert f"has version {VERSION + 1} of prepared checkpoints and this cvllm-jax reads up to {VERSION}: " in message


def edit(folder, **changes):
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


EMBED = {"shape": [64, 32], "dtype": "int8"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "1"}, "the version '1'"),
        ({"version": True}, "the version True"),
        ({"version": -(10**4000)}, "the version a number of 13288 bits"),
        ({"tensors": {}}, "no tensors"),
        ({"tensors": [1]}, "no tensors"),
        ({"tensors": {"../../embed": EMBED}}, "the tensor '../../embed'"),
        ({"tensors": {"/etc/passwd": EMBED}}, "the tensor '/etc/passwd'"),
        ({"tensors": {"..": EMBED}}, "the tensor '..'"),
        ({"tensors": {"": EMBED}}, "the tensor ''"),
        ({"tensors": {"embed": 3}}, "the tensor 'embed': 3"),
        ({"tensors": {"embed": EMBED | {"shape": [2**62, 2**62]}}}, "shape"),
        ({"tensors": {"embed": EMBED | {"shape": [2**39, 2**39]}}}, "another size"),
        ({"tensors": {"embed": EMBED | {"shape": [-64, -32]}}}, "shape"),
        ({"tensors": {"embed": EMBED | {"shape": [1] * 99}}}, "shape"),
        ({"tensors": {"embed": EMBED | {"shape": []}}}, "shape"),
        ({"tensors": {"embed": EMBED | {"dtype": "object"}}}, "of type 'object'"),
        ({"tensors": {"embed": EMBED | {"dtype": "float32"}}}, "another size"),
        ({"tensors": {"nothing": EMBED}}, "1 tensors are missing (nothing)"),
        ({"tensors": {"embed": EMBED}}, "announces 2 layers but has only 1 tensors"),
        ({"layouts": None}, "no layouts"),
        ({"layouts": {"embed": {"method": "int2"}}}, "the layout {'method': 'int2'} of 'embed'"),
        ({"layouts": {"embed": {"method": "int8", "group_size": 0, "offsets": False}}}, "the layout"),
        ({"layouts": {}}, "the quantization"),
        ({"quantization": None}, "the quantization None"),
    ],
    ids=range(24),
)
def test_manifests_that_make_no_sense(copy, changes, message):
    edit(copy, **changes)
    assert message in refusal(copy)


def test_tensors_that_the_manifest_does_not_name(copy):
    tensors = json.loads((copy / MANIFEST).read_text())["tensors"]
    kept = {name: info for name, info in tensors.items() if "output" not in name and name != "embed.scales"}
    edit(copy, tensors=kept)
    assert "missing (embed.scales, layers.0-1.attention.output" in refusal(copy)


def test_other_layouts_than_the_arrays(copy):
    edit(copy, layouts={"layers.0.mlp.down": {"method": "int8", "group_size": 32, "offsets": False}})
    message = refusal(copy)
    assert "unexpected (embed.scales" in message and "layers.0.mlp.down.scales" in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"version": 1}', b"[" * 10**6])
def test_manifests_that_are_none(copy, content):
    (copy / MANIFEST).write_bytes(content)
    assert MANIFEST in refusal(copy)


def test_arrays_that_are_not_whole(copy):
    (copy / "weights" / "norm" / "0").unlink()
    with (copy / "weights" / "embed" / "0.0").open("r+b") as file:
        file.truncate(100)
    message = refusal(copy)
    assert "1 tensors are missing (norm)" in message
    assert "embed 100 bytes, not 2048" in message


def test_a_pipe_in_place_of_an_array(copy):
    path = copy / "weights" / "norm" / "0"
    path.unlink()
    os.mkfifo(path)
    assert "norm 0 bytes, not 128" in refusal(copy)


def test_a_model_that_the_arrays_do_not_fit(copy):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3, "intermediate_size": 32}))
    message = refusal(copy)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 10**9}))
    assert "announces 1000000000 layers but has only 23 tensors" in refusal(copy)
    assert "missing (layers.2." in message and "misshapen (layers.0-1.mlp.down" in message


@pytest.mark.parametrize("method", ["int4", "fp8"])
def test_gpus_have_the_types_that_cpus_have_in_bytes(method, source, tmp_path, monkeypatch):
    """The layouts of a GPU, on the CPU: the files are the same, and load as either."""
    layout = WeightLayout(method=method, group_size=32, offsets=method == "int4")

    def of_a_gpu(config, checkpoint, *others):
        if checkpoint.format != "prepared":
            return layout
        return {
            name: WeightLayout(method=kept.method, group_size=kept.group_size, offsets=kept.offsets)
            for name, kept in checkpoint.layouts.items()
        }

    made = convert(config(source, f"{method}:32"), tmp_path / "cpu").path
    with monkeypatch.context() as patch:
        patch.setattr("cvllm_jax.engine.converting.weight_layouts", of_a_gpu)
        other = convert(config(source), tmp_path / "gpu").path
        patch.setitem(globals(), "weight_layouts", of_a_gpu)
        theirs = weights_of(config(source))
        assert theirs["layers.0.mlp.down"].dtype == {"int4": jnp.int4, "fp8": jnp.float8_e4m3fn}[method]
        require_same(weights_of(config(made)), theirs)
    require_same(weights_of(config(other)), weights_of(config(made)))
