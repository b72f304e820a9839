"""Folders of few bits as the formats' own packers write them: the same numbers as their own code reads.

tests/golden/make_quantized.py wrote the files.
"""

import json
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_llama import CONFIG, expected_targets, llama_tensors, write_folder

from cvllm_jax import EngineConfig
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.folder import FolderWeights
from cvllm_jax.checkpoints.quantized_folder import QuantizedFolder
from cvllm_jax.checkpoints.quantizing import StoredLayout
from cvllm_jax.checkpoints.safetensors_file import SafetensorsFile
from cvllm_jax.engine.devices import mesh_of
from cvllm_jax.engine.loading import place_weights
from cvllm_jax.engine.weight_layouts import weight_layouts
from cvllm_jax.errors import ModelLoadError
from cvllm_jax.models.registry import family_for
from pallas_kernels.quantized_matmul import QuantizedWeight, dequantize

GOLDEN = Path(__file__).parents[1] / "golden" / "quantized"
MODULE = "model.layers.0.mlp.up_proj"
WEIGHT = MODULE + ".weight"
#: By case, the layout that keeps the weights as they are; int8 where there is none.
LAYOUTS = {
    "fp8_tensor": StoredLayout("fp8", None, False),
    "fp8_block": StoredLayout("fp8", 32, False),
    "fp8_block_cut": StoredLayout("int8", None, False),
    "compressed_w4a16": StoredLayout("int4", 32, False),
    "compressed_w4a16_asymmetric": StoredLayout("int4", 32, True),
    "compressed_w4a16_channel": StoredLayout("int4", None, False),
    "compressed_w8a16": StoredLayout("int8", 32, False),
    "compressed_w8a8": StoredLayout("int8", None, False),
    "compressed_w8a8_fp8": StoredLayout("fp8", None, False),
    "compressed_w8a8_fp8_tensor": StoredLayout("fp8", None, False),
    "gptq": StoredLayout("int4", 32, False),
    "gptq_asymmetric": StoredLayout("int4", 32, True),
    "gptq_v2": StoredLayout("int4", 32, True),
    "gptq_desc_act": StoredLayout("int8", None, False),
    "gptq_int8": StoredLayout("int8", 32, False),
    "awq": StoredLayout("int4", 32, True),
}


def opened(folder):
    options = json.loads((folder / "config.json").read_text())["quantization_config"]
    return QuantizedFolder(FolderWeights(folder), options, folder)


def test_every_golden_is_tested():
    assert {path.name for path in GOLDEN.iterdir()} == set(LAYOUTS)


@pytest.mark.parametrize("case", LAYOUTS)
def test_numbers_are_those_of_the_formats_own_code(case):
    expected = np.load(GOLDEN / case / "expected.npy")
    weights = opened(GOLDEN / case)
    assert set(weights.tensors) == {WEIGHT} and weights.tensors[WEIGHT].shape == expected.shape
    np.testing.assert_allclose(weights.read(WEIGHT), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights.read(WEIGHT, 3, 21), expected[3:21], rtol=1e-5, atol=1e-6)
    weights.close()


@pytest.mark.parametrize(("case", "layout"), LAYOUTS.items())
def test_few_bits_stay_as_they_are(case, layout):
    expected = np.load(GOLDEN / case / "expected.npy")
    weights = opened(GOLDEN / case)
    assert weights.layout(WEIGHT) == layout
    packed = weights.packed(WEIGHT, 5, 40)
    if case in ("gptq_desc_act", "fp8_block_cut"):
        assert packed is None
        return
    assert packed.values.dtype == {"fp8": ml_dtypes.float8_e4m3fn, "int4": ml_dtypes.int4}.get(layout.method, np.int8)
    assert packed.scales.shape[1] == expected.shape[1] // (layout.group_size or expected.shape[1])
    assert (packed.offsets is not None) <= layout.offsets
    np.testing.assert_allclose(packed.numbers(), expected[5:40], rtol=1e-5, atol=1e-6)


def gptq_model(folder, *, bits=4, keep=()):
    """A tiny llama with its layers' matrices in GPTQ's format, and what they stand for."""
    tensors, stored = llama_tensors(), {}
    for name, values in list(tensors.items()):
        if values.ndim < 2 or ".layers." not in name or name in keep:
            stored[name] = values
            continue
        outputs, inputs = values.shape
        grouped = values.reshape(outputs, -1, 16)
        scales = (np.abs(grouped).max(-1) / 7).astype(np.float16)
        codes = (np.rint(grouped / scales[..., None].astype(np.float32)) + 8).clip(0, 15).reshape(outputs, inputs)
        tensors[name] = ((codes - 8) * np.repeat(scales.astype(np.float32), 16, 1)).astype(np.float32)
        module = name.removesuffix(".weight")
        places = 4 * np.arange(8, dtype=np.uint32)[:, None]
        words = codes.astype(np.uint32).T.reshape(inputs // 8, 8, outputs) << places
        stored[module + ".qweight"] = np.ascontiguousarray(np.bitwise_or.reduce(words, 1)).view(np.int32)
        stored[module + ".qzeros"] = np.full((inputs // 16, outputs // 8), 0x77777777, np.int32)
        stored[module + ".scales"] = np.ascontiguousarray(scales.T)
        stored[module + ".g_idx"] = np.arange(inputs, dtype=np.int32) // 16
    options = {"quant_method": "gptq", "bits": bits, "group_size": 16, "desc_act": False}
    return write_folder(folder, stored, CONFIG | {"quantization_config": options}), expected_targets(tensors)


def test_a_model_keeps_its_layout(tmp_path):
    """Weights of layers as the file has them, embeddings plain; another layout rounds what they stand for."""
    folder, expected = gptq_model(tmp_path / "m")
    device = jax.devices("cpu")[0]
    engine = EngineConfig(model_path=str(folder), device="cpu", dtype="f32")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.quantization == "gptq"
        family = family_for(checkpoint.config)
        sizes = family.config(checkpoint.config)
        layouts = weight_layouts(engine, checkpoint, jnp.float32, device, family, sizes)
        assert {(each.method, each.group_size, each.offsets) for each in layouts.values()} == {("int4", 16, False)}
        weights = place_weights(family, sizes, checkpoint, jnp.float32, mesh_of([device]), engine, layouts)
    state = jax.tree.unflatten(weights.treedef, weights.leaves)
    down = state["layers"][1]["mlp"]["down"]
    matrix = dequantize(QuantizedWeight(down["weight"][...], down["scales"][...], bytes_of="int4"))
    np.testing.assert_array_equal(matrix, expected["layers.1.mlp.down"])
    assert state["embed"]["weight"].dtype == jnp.float32
    assert weights.parameters == sum(np.prod(values.shape) for values in llama_tensors().values())


def test_a_layer_that_was_left_out_stays_as_it_is(tmp_path):
    folder, expected = gptq_model(tmp_path / "m", keep=("model.layers.1.mlp.down_proj.weight",))
    device = jax.devices("cpu")[0]
    engine = EngineConfig(model_path=str(folder), device="cpu", dtype="f32")
    with open_checkpoint(folder) as checkpoint:
        family = family_for(checkpoint.config)
        sizes = family.config(checkpoint.config)
        layouts = weight_layouts(engine, checkpoint, jnp.float32, device, family, sizes)
        weights = place_weights(family, sizes, checkpoint, jnp.float32, mesh_of([device]), engine, layouts)
    assert "layers.0.mlp.down" in layouts and "layers.1.mlp.down" not in layouts
    down = jax.tree.unflatten(weights.treedef, weights.leaves)["layers"][1]["mlp"]["down"]["weight"]
    np.testing.assert_array_equal(down[...], expected["layers.1.mlp.down"])


@pytest.mark.parametrize(("case", "change", "message"), [
    ("gptq", {"drop": "qzeros"}, "up_proj without qzeros"),
    ("gptq", {"drop": "scales"}, "up_proj without scales"),
    ("gptq", {"options": {"bits": 3}}, "3 bits"),
    ("gptq", {"g_idx": np.full(96, 3, np.int32)}, "g_idx, which does not say the group of each of 96 columns"),
    ("gptq", {"scales": np.ones((5, 40), np.float16)}, r"40 rows and 96 columns with \[40, 5\] scales"),
    ("gptq", {"qzeros": np.zeros((3, 2), np.int32)}, r"qzeros \[3, 2\] with scales \[3, 40\]"),
    ("awq", {"options": {"version": "gemv"}}, "its version or number of bits"),
    ("awq", {"qzeros": np.zeros((1, 5), np.int32)}, r"qzeros \[1, 5\] with scales \[3, 40\]"),
    ("fp8_block", {"drop": "weight_scale_inv"}, "without a weight_scale_inv"),
    ("fp8_block", {"options": {"weight_block_size": None}}, "no size of blocks"),
    ("fp8_block", {"options": {"weight_block_size": [0, 32]}}, "no size of blocks"),
    ("fp8_block", {"weight_scale_inv": np.ones((2, 3), np.float32)}, r"\[40, 96\] with scales \[2, 3\]"),
    ("compressed_w4a16", {"weight_shape": np.array([2**40, 96])}, r"weight_packed \[40, 12\] for \[1099511627776, 96"),
    ("compressed_w4a16", {"weight_shape": np.array([40, 50])}, "neither 4 nor 8 bits"),
    ("compressed_w4a16", {"weight_scale": np.ones((40, 7), np.float32)}, r"with \[40, 7\] scales"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(tmp_path, case, change, message):
    options = json.loads((GOLDEN / case / "config.json").read_text())["quantization_config"]
    with closing(SafetensorsFile(GOLDEN / case / "model.safetensors")) as file:
        tensors = {name: file.raw(name).copy() for name in file.tensors}
    for name, value in change.items():
        if name == "options":
            options |= value
        elif name == "drop":
            del tensors[f"{MODULE}.{value}"]
        else:
            tensors[f"{MODULE}.{name}"] = value
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": options}))
    with pytest.raises(ModelLoadError, match=message):
        opened(tmp_path)


def test_methods_that_are_not_ported_are_named(tmp_path):
    write_folder(tmp_path / "m", llama_tensors(), CONFIG | {"quantization_config": {"quant_method": "bitsandbytes"}})
    with pytest.raises(ModelLoadError, match="quantised with bitsandbytes, which is not supported yet"):
        open_checkpoint(tmp_path / "m")


def test_blocks_of_mxfp4_without_their_scales_are_refused(tmp_path):
    blocks, scales = np.zeros((2, 4, 3, 16), np.uint8), np.full((2, 4, 3), 127, np.uint8)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "mxfp4"}}))
    for tensors, message in (
        ({"x_blocks": blocks}, "x_blocks has no x_scales beside it"),
        ({"x_blocks": blocks, "x_scales": scales[:, :3]}, r"U8\[2, 4, 3, 16\] and U8\[2, 3, 3\], which is no MXFP4"),
        ({"x_blocks": blocks, "x_scales": scales.astype(np.float32)}, "which is no MXFP4"),
    ):
        save_file({n: np.ascontiguousarray(tensor) for n, tensor in tensors.items()}, tmp_path / "model.safetensors")
        with pytest.raises(ModelLoadError, match=message):
            open_checkpoint(tmp_path)
    blocks[0, 1, 2, 5], scales[0, 1, 2] = 0x2F, 130  # numbers 10 and 11 of the group: -6 and 1, times 8
    save_file({"x_blocks": blocks, "x_scales": scales}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.quantization == "mxfp4"
        assert checkpoint.tensors["x_blocks"].shape == (2, 4, 96)
        expected = np.zeros(96, np.float32)
        expected[2 * 32 + 10 : 2 * 32 + 12] = -48, 8
        np.testing.assert_array_equal(checkpoint.read("x_blocks", 1, 2)[0], expected)
