"""Weights rounded while they load, and blocks of GGUF files that are kept as they are."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from tiny_llama import expected_targets, llama_targets, llama_tensors, write_folder, write_gguf

from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.gguf import GgufFile
from cvllm_jax.checkpoints.gguf_blocks import UNPACK
from cvllm_jax.checkpoints.loading import load_weights
from cvllm_jax.checkpoints.mappings.llama import RULES
from cvllm_jax.checkpoints.quantizing import PackedRows, StoredLayout, fitted, quantize_rows, shared_layout
from cvllm_jax.errors import ModelLoadError
from pallas_kernels.quantized_matmul import dequantize, quantize
from pallas_kernels.quantized_matmul.weight import STORAGE, QuantizedWeight


def stored(method):
    return np.dtype(STORAGE[method][0])


def rows(count=6, columns=256, seed=0):
    numbers = np.random.default_rng(seed).standard_normal((count, columns)).astype(np.float32)
    numbers[0, :32] = 0
    return numbers


@pytest.mark.parametrize("scale_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("method", STORAGE)
def test_rounding_is_that_of_the_kernels(method, group, scale_dtype):
    numbers = rows()
    ours = quantize_rows(numbers, stored(method), 256 // (group or 256), offsets=False, scale_dtype=scale_dtype)
    theirs = quantize(jnp.asarray(numbers), method, group, scale_dtype=scale_dtype)
    # XLA divides by multiplying, so a scale may be its neighbour, and a number between two values either of them
    np.testing.assert_allclose(ours.scales.T, np.asarray(theirs.scales, np.float32), rtol=1e-6)
    different = ours.values.astype(np.float32) != np.asarray(theirs.values, np.float32)
    assert different.mean() < 1e-3
    np.testing.assert_allclose(ours.numbers()[~different], dequantize(theirs)[~different], rtol=1e-6)


def squared_errors(packed, numbers):
    """[rows, groups]"""
    return np.square(packed.numbers() - numbers).reshape(*packed.scales.shape, -1).sum(-1)


def int4(numbers, scale_dtype=np.float16):
    return quantize_rows(numbers, stored("int4"), numbers.shape[1] // 32, offsets=True, scale_dtype=scale_dtype)


def whole_range(numbers):
    """Int4 from the smallest to the largest number of each group of 32."""
    grouped = numbers.reshape(len(numbers), -1, 32)
    least, step = grouped.min(-1), np.maximum((grouped.max(-1) - grouped.min(-1)) / 15, np.float32(1e-30))
    codes = np.rint((grouped - least[..., None]) / step[..., None]) - 8
    return PackedRows(codes.reshape(numbers.shape), step, least + 8 * step)


@pytest.mark.parametrize("shift", [0, 3])  # no group has 0 in it
def test_no_group_of_int4_is_further_off_than_its_whole_range_would_be(shift):
    numbers = rows(64) + np.float32(shift)
    packed = int4(numbers, np.float32)
    ours, plain = squared_errors(packed, numbers), squared_errors(whole_range(numbers), numbers)
    assert (ours <= plain * 1.0001 + 1e-9).all()
    assert ours.sum() < 0.85 * plain.sum()
    assert set(np.unique(packed.values.astype(int))) == set(range(-8, 8))


@pytest.mark.parametrize("size", [1e-6, 1, 1e3])
def test_int4_finds_sixteen_values_again(size):
    rng = np.random.default_rng(3)
    codes = rng.integers(-8, 8, (40, 8, 32))
    codes[..., 0], codes[..., 1] = -8, 7
    scales = (rng.uniform(0.5, 2, (40, 8)) * size).astype(np.float16).astype(np.float32)
    offsets = (scales * rng.integers(-4, 5, (40, 8))).astype(np.float16).astype(np.float32)
    numbers = (codes * scales[..., None] + offsets[..., None]).astype(np.float32).reshape(40, 256)
    packed = int4(numbers)
    np.testing.assert_array_equal(packed.values.astype(int), codes.reshape(40, 256))
    np.testing.assert_array_equal(packed.numbers(), numbers)


@pytest.mark.parametrize("number", [0, 2.0**-20, -0.75, 1024])
def test_a_group_of_equal_numbers_is_exact_in_int4(number):
    numbers = rows(2)
    numbers[1, 64:96] = number
    np.testing.assert_array_equal(int4(numbers).numbers()[1, 64:96], np.float32(number))


def test_int4_says_where_numbers_are_outside_its_scales():
    numbers = rows(2)
    numbers[1, 40], numbers[1, 41] = 3e38, -3e38
    packed = int4(numbers)
    assert not np.isfinite(np.abs(packed.scales) + np.abs(packed.offsets))[1, 1]
    assert np.isfinite(packed.scales + packed.offsets)[0].all()


@pytest.mark.parametrize("scale_dtype", [np.float16, ml_dtypes.bfloat16])
def test_int4_is_truer_than_q4_0_and_q4_1(scale_dtype):
    numbers = rows(64)
    packed = int4(numbers, scale_dtype)
    for kind in (Kind.Q4_0, Kind.Q4_1):
        theirs = quants.dequantize(quants.quantize(numbers, kind), kind)
        assert np.square(packed.numbers() - numbers).mean() < np.square(theirs - numbers).mean()


@pytest.mark.parametrize("kind", [Kind[name] for name in UNPACK], ids=lambda kind: kind.name)
def test_unpacked_blocks_are_what_gguf_quants_dequantizes(tmp_path, kind):
    rng = np.random.default_rng(1)
    size = quants.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (32, 8, size), np.uint8)
    if kind == Kind.MXFP4:
        blocks[..., 0] = rng.integers(100, 140, blocks.shape[:2])
    else:
        blocks[..., :2], blocks[..., 2:4] = _halves(rng, blocks.shape[:2]), _halves(rng, blocks.shape[:2])
    if kind == Kind.Q8_0:
        blocks[..., 2:4] = 0x80  # -128, which quantising never makes
    data = blocks.reshape(len(blocks), -1)
    path = write_gguf(tmp_path / "a.gguf", {}, extra=lambda writer: writer.add_tensor("w", data, raw_dtype=kind))
    with GgufFile(path) as file:
        packed, layout = file.packed("w", 3, 30), file.layout("w")
        expected = quants.dequantize(data, kind)[3:30]
    assert packed.scales.shape == (27, expected.shape[1] // 32)
    np.testing.assert_allclose(packed.numbers(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert (packed.values.dtype, packed.offsets is not None) == (stored(layout.method), layout.offsets)


def _halves(rng, shape):
    return rng.uniform(-2, 2, shape).astype(np.float16)[..., None].view(np.uint8)


def test_other_types_have_no_packed_form(tmp_path):
    data = np.zeros((1, 210), np.uint8)
    tensor = {"extra": lambda writer: writer.add_tensor("w", data, raw_dtype=Kind.Q6_K)}
    with GgufFile(write_gguf(tmp_path / "a.gguf", llama_tensors(), **tensor)) as file:
        assert file.packed("w", 0, 1) is None and file.layout("w") == StoredLayout("int8", 32)
        assert file.packed("output_norm.weight", 0, 1) is None and file.layout("output_norm.weight") is None


def test_rows_fit_more_groups_but_no_others():
    packed = PackedRows(rows(2, 64).astype(ml_dtypes.int4), np.ones((2, 2), np.float32))
    more = fitted(packed, stored("int4"), 4, offsets=True)
    assert more.scales.shape == more.offsets.shape == (2, 4)
    np.testing.assert_array_equal(more.numbers(), packed.numbers())
    assert fitted(packed, stored("int4"), 1, offsets=False) is None  # fewer groups
    assert fitted(packed, stored("fp8"), 2, offsets=False) is None
    assert fitted(more, stored("int4"), 4, offsets=False) is None


@pytest.mark.parametrize(("layouts", "together"), [
    ([StoredLayout("int4", 32)], StoredLayout("int4", 32)),
    ([StoredLayout("int4", 32), StoredLayout("int4", 64, offsets=True)], StoredLayout("int4", 32, offsets=True)),
    ([StoredLayout("int4", 32), StoredLayout("int8", 16)], StoredLayout("int8", 16)),
    ([StoredLayout("int8"), StoredLayout("int4", 128)], StoredLayout("int8")),  # all 128 columns
    ([StoredLayout("int4", 8), StoredLayout("int4", 12)], StoredLayout("int8")),  # groups of 4 are no use
    ([StoredLayout("int8"), StoredLayout("fp8")], None),
    ([StoredLayout("mxfp4", 32), None], None),
    ([None], None),
])  # fmt: skip
def test_the_tensors_of_a_weight_share_a_layout(layouts, together):
    assert shared_layout(layouts, 128) == together


def test_int4_fits_int8(tmp_path):
    packed = PackedRows(rows(2, 64).astype(ml_dtypes.int4), np.ones((2, 2), np.float32))
    np.testing.assert_array_equal(fitted(packed, stored("int8"), 2, offsets=False).numbers(), packed.numbers())


def quantized_targets(method, group, offsets):
    targets = {}
    for name, struct in llama_targets(dtype=jnp.float32).items():
        if len(struct.shape) == 1:
            targets[name] = struct
            continue
        outputs, inputs = struct.shape
        targets[name] = jax.ShapeDtypeStruct(struct.shape, STORAGE[method][0])
        targets[name + ".scales"] = jax.ShapeDtypeStruct((inputs // (group or inputs), outputs), jnp.float32)
        if offsets:
            targets[name + ".offsets"] = targets[name + ".scales"]
    return targets


def load(source, targets, **options):
    with open_checkpoint(source) as checkpoint:
        return load_weights(checkpoint, RULES, targets, lambda name, array: jax.device_put(array), **options)


def whole(loaded, name):
    """The matrix that the arrays of a target stand for."""
    if name + ".scales" not in loaded:
        return np.asarray(loaded[name])
    return np.asarray(dequantize(QuantizedWeight(*(loaded.get(name + end) for end in ("", ".scales", ".offsets")))))


@pytest.mark.parametrize(
    ("method", "group", "offsets"), [("int8", None, False), ("int4", 32, True), ("fp8", 16, False)]
)
def test_every_target_is_quantized(tmp_path, method, group, offsets):
    tensors, targets = llama_tensors(), quantized_targets(method, group, offsets)
    from_folder = load(write_folder(tmp_path / "hf", tensors), targets)
    from_gguf = load(write_gguf(tmp_path / "a.gguf", tensors), targets)
    assert list(from_folder) == list(targets)
    for name, matrix in expected_targets(tensors).items():
        packed = quantize_rows(
            np.atleast_2d(matrix), stored(method), matrix.shape[-1] // (group or matrix.shape[-1]),
            offsets=offsets, scale_dtype=np.float32,
        )  # fmt: skip
        expected = packed.numbers() if matrix.ndim > 1 else matrix
        np.testing.assert_allclose(whole(from_folder, name), expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(whole(from_folder, name), whole(from_gguf, name))


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1], ids=lambda kind: kind.name)
def test_blocks_of_gguf_files_are_not_rounded_again(tmp_path, monkeypatch, kind, use_cache):
    monkeypatch.setenv("CVLLM_CACHE", str(tmp_path / "cache"))
    tensors = llama_tensors()
    path = write_gguf(tmp_path / "a.gguf", tensors, kind=kind)
    rounded = {
        name: values if values.ndim == 1 else quants.dequantize(quants.quantize(values, kind), kind)
        for name, values in tensors.items()
    }
    for _ in range(2):  # the second time from the cache, if there is one
        loaded = load(path, quantized_targets("int4", 32, True), use_cache=use_cache)
        for name, matrix in expected_targets(rounded).items():
            np.testing.assert_allclose(whole(loaded, name), matrix, rtol=1e-5, atol=1e-5)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    tensors = llama_tensors()
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = np.inf
    with pytest.raises(ModelLoadError, match=r"down_proj.weight has values that are no finite numbers"):
        load(write_folder(tmp_path / "hf", tensors), quantized_targets("int8", None, False))
