"""Products with quantised weights: the XLA form against numpy, and the Hopper kernels without a GPU.

The kernels run in Mosaic's interpreter, which simulates TMA and barriers, fills fresh shared memory with NaN, and
raises on data races and on reads outside an array; they also lower for CUDA. The interpreter multiplies nothing from
registers, so it gets ``operand="shared"``, which differs in one copy; lowering has both.
"""

import itertools
import zlib
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.quantized_matmul import (
    HopperConfig,
    QuantizedWeight,
    bench,
    choose_implementation,
    cpu,
    dequantize,
    hopper,
    in_bytes,
    quantize,
    quantized_matmul,
)

# the interpreter's arithmetic warns of the NaN that it meets in unused places
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

DTYPES = {"int8": jnp.int8, "int4": jnp.int4, "fp8": jnp.float8_e4m3fn}

#: Relative error in norm of a float32 sum of exact products, of a result rounded to bfloat16 (at most 2**-9 each),
#: and of a sum of products with weights that were rounded to bfloat16.
SUMMED, ROUNDED, WEIGHTS_ROUNDED = 1e-6, 2**-9, 2**-9

SHARED = partial(HopperConfig, operand="shared")


def random_weight(rng, method, shape=(128, 512), group=None, scale_dtype=jnp.float32):
    return quantize(jnp.asarray(rng.standard_normal(shape), jnp.float32), method, group, scale_dtype=scale_dtype)


def product(x, weight):
    """In float64."""

    def spread(numbers):
        return np.repeat(np.asarray(numbers, np.float64).T, weight.shape[1] // len(numbers), axis=1)

    matrix = np.asarray(weight.values, np.float64) * spread(weight.scales)
    if weight.offsets is not None:
        matrix += spread(weight.offsets)
    return np.asarray(x, np.float64) @ matrix.T


def error(got, want):
    assert got.shape == want.shape
    return np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)


def run(x, weight, config, out_dtype=None):
    """The kernel in the interpreter with its race detector."""
    interpret = plgpu.InterpretGPUParams(detect_races=True)
    return jax.jit(partial(hopper.matmul, config=config, out_dtype=out_dtype, interpret=interpret))(x, weight)


def check(rows, method, group, config, *, scale_dtype=jnp.float32, out_dtype=jnp.float32, shape=(128, 512)):
    rng = np.random.default_rng(zlib.crc32(f"{rows} {method} {group} {config} {scale_dtype} {out_dtype}".encode()))
    x = jnp.asarray(rng.standard_normal((rows, shape[1])), jnp.bfloat16)
    weight = random_weight(rng, method, shape, group, scale_dtype)
    got = run(x, weight, config, out_dtype)
    assert got.dtype == out_dtype
    tolerance = SUMMED if rows <= 64 or group is None else WEIGHTS_ROUNDED
    assert error(got, product(x, weight)) < tolerance + (0 if out_dtype == jnp.float32 else ROUNDED)


@pytest.mark.parametrize("scale_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("group", [None, 32, 128])
@pytest.mark.parametrize("method", DTYPES)
def test_quantizing_rounds_to_the_nearest(method, group, scale_dtype):
    rng = np.random.default_rng(0)
    original = rng.standard_normal((64, 256)).astype(np.float32)
    original[3] = 0
    weight = quantize(jnp.asarray(original), method, group, scale_dtype=scale_dtype)
    assert weight.values.dtype == DTYPES[method] and weight.scales.dtype == scale_dtype
    assert weight.shape == (64, 256) and weight.group_size == group
    assert weight.scales.shape == (1 if group is None else 256 // group, 64)
    restored = np.asarray(dequantize(weight))
    steps = np.repeat(np.asarray(weight.scales, np.float32).T, group or 256, axis=1)
    # half a step; of float8 half a unit in the last of 4 bits, or half of its smallest number; and clipping, where
    # the scale was rounded down
    half = np.maximum(np.abs(original) / 16, steps / 1024) if method == "fp8" else steps * 0.5
    if scale_dtype == jnp.bfloat16:
        half = np.maximum(half, np.abs(original) / 128)
    assert (np.abs(restored - original) <= half * 1.001).all()
    np.testing.assert_array_equal(restored[3], 0)


def test_a_weight_is_a_pytree_and_knows_its_size():
    weight = quantize(jnp.full((4, 64), 7.0), "int4", 32, scale_dtype=jnp.bfloat16)
    assert weight.nbytes == 4 * 64 // 2 + 2 * 4 * 2
    doubled = jax.jit(lambda w: QuantizedWeight(w.values, w.scales * 2))(weight)
    np.testing.assert_array_equal(dequantize(doubled), 14.0)
    assert [leaf.shape for leaf in jax.tree.leaves(weight)] == [(4, 64), (2, 4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int3",), "int8, int4, fp8, mxfp4, not 'int3'"),
        (("int8", 48), "64 input channels do not divide into groups of 48"),
        (("int8", 0), "groups of 0"),
    ],
)
def test_impossible_quantizations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize(jnp.ones((4, 64)), *arguments)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("method", DTYPES)
def test_xla_equals_numpy(method, group, dtype):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((5, 96)), dtype)
    weight = random_weight(rng, method, (48, 96), group)
    got = jax.jit(partial(quantized_matmul, implementation="xla"))(x, weight)
    assert got.dtype == dtype
    exact = quantized_matmul(x, weight, implementation="xla", out_dtype=jnp.float32)
    rounded = dtype == jnp.bfloat16
    assert error(exact, product(x, weight)) < (WEIGHTS_ROUNDED if rounded and group else SUMMED)
    assert error(got, product(x, weight)) < (2 * ROUNDED if rounded else SUMMED)


#: What the form for CPUs rounds besides: activations to 15 bits of a row's largest, int4 weights to int8 of theirs, and
#: float8 and int8 weights with scales of groups to the type of the activations.
CPU_ROUNDS = {("int8", None): 1e-3, ("int4", None): 1e-2, ("int4", 32): 1e-2, ("fp8", None): SUMMED}


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("method", DTYPES)
def test_the_form_for_cpus_equals_numpy(method, group, offsets, rows):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((rows, 96)), jnp.bfloat16).at[:, 7].multiply(100)  # an outlier, as models have
    weight = random_weight(rng, method, (48, 96), group, jnp.bfloat16)
    if offsets:
        weight = replace(weight, offsets=jnp.asarray(rng.standard_normal(weight.scales.shape), jnp.bfloat16))
    got = jax.jit(partial(quantized_matmul, out_dtype=jnp.float32))(x, weight)
    limit = CPU_ROUNDS.get((method, group), WEIGHTS_ROUNDED) if method != "fp8" or not offsets else WEIGHTS_ROUNDED
    assert error(got, product(x, weight)) < limit


@pytest.mark.parametrize("implementation", ["xla", "cpu"])
@pytest.mark.parametrize(("method", "group"), [("int4", None), ("int4", 32), ("fp8", None), ("fp8", 32), ("mxfp4", 32)])
def test_values_in_bytes_are_the_same_weight(method, group, implementation):
    rng = np.random.default_rng(6)
    weight = random_weight(rng, method, (48, 96), group)
    if method == "mxfp4":
        scales = jnp.exp2(jnp.asarray(rng.integers(-9, 3, weight.scales.shape), jnp.float32))
        weight = replace(weight, scales=scales.astype(jnp.float8_e8m0fnu))
    small = in_bytes(weight)
    assert small.values.dtype == jnp.uint8
    assert (small.shape, small.group_size, small.nbytes) == (weight.shape, weight.group_size, weight.nbytes)
    np.testing.assert_array_equal(dequantize(small), dequantize(weight))
    for rows, dtype in ((1, jnp.bfloat16), (5, jnp.bfloat16), (2, jnp.float32)):
        x = jnp.asarray(rng.standard_normal((rows, 96)), dtype)
        multiply = jax.jit(partial(quantized_matmul, implementation=implementation, out_dtype=jnp.float32))
        got = multiply(x, small)
        np.testing.assert_array_equal(got, multiply(x, weight))
        exact = method == "mxfp4" or group is None or dtype == jnp.float32
        limit = CPU_ROUNDS[method, group] if method == "int4" else SUMMED if exact else WEIGHTS_ROUNDED
        assert error(got, product(x, weight)) < limit


def test_mxfp4_is_exact_at_every_number():
    values = jnp.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6] * 8, jnp.float32).at[32:].multiply(-1).reshape(2, 32)
    scales = jnp.asarray([[2.0**-100, 2.0**100]], jnp.float8_e8m0fnu)
    weight = in_bytes(QuantizedWeight(values.astype(jnp.float4_e2m1fn), scales))
    x = jnp.eye(32, dtype=jnp.float32)
    got = quantized_matmul(x, weight, implementation="cpu")
    np.testing.assert_array_equal(got.T, values * jnp.asarray([[2.0**-100], [2.0**100]]))


def test_the_form_for_cpus_takes_every_value_and_odd_groups():
    rng = np.random.default_rng(3)
    for dtype, low in ((jnp.int4, -8), (jnp.int8, -128)):
        values = jnp.asarray(rng.choice([low, -1, 0, 1, -low - 1], (16, 30)), dtype)
        for groups in (1, 2):
            weight = QuantizedWeight(values, jnp.full((groups, 16), 0.5))
            x = jnp.asarray(rng.integers(-127, 128, (4, 30)), jnp.float32)
            assert error(quantized_matmul(x, weight), product(x, weight)) < 1e-2
    assert not quantized_matmul(jnp.zeros((2, 30)), weight).any()


@pytest.mark.parametrize("outputs", [64, 192, 200])  # a block, three, and some more
def test_many_rows_on_a_cpu_meet_blocks_of_the_weight(outputs, monkeypatch):
    monkeypatch.setattr(cpu, "_BLOCK", 64 * 96)
    rng = np.random.default_rng(7)
    weight = random_weight(rng, "int8", (outputs, 96))
    x = jnp.asarray(rng.standard_normal((130, 96)), jnp.bfloat16)
    got = jax.jit(partial(quantized_matmul, implementation="cpu", out_dtype=jnp.float32))(x, weight)
    assert error(got, product(x, weight)) < SUMMED


def test_rows_stay_to_themselves_on_a_cpu():
    weight = random_weight(np.random.default_rng(4), "int8", (8, 32))
    x = jnp.ones((3, 32)).at[1].set(jnp.nan)
    got = quantized_matmul(x, weight)
    assert jnp.isfinite(got[0]).all() and jnp.isnan(got[1]).all()
    np.testing.assert_array_equal(got[0], got[2])


def test_offsets_are_added_to_what_the_kernels_give(monkeypatch):
    rng = np.random.default_rng(5)
    weight = random_weight(rng, "int4", (128, 256), 32, jnp.bfloat16)
    weight = replace(weight, offsets=jnp.asarray(rng.standard_normal(weight.scales.shape), jnp.bfloat16))
    x = jnp.asarray(rng.standard_normal((3, 256)), jnp.bfloat16)
    shared = SHARED(block_k=128, stages=2)
    interpreted = partial(hopper.matmul, interpret=plgpu.InterpretGPUParams())
    monkeypatch.setattr(hopper, "matmul", interpreted)
    got = quantized_matmul(x, weight, implementation="hopper", config=shared, out_dtype=jnp.float32)
    assert error(got, product(x, weight)) < WEIGHTS_ROUNDED


@pytest.mark.parametrize(
    ("rows", "method", "group", "config"),
    [
        (1, "int8", None, SHARED(block_k=128, stages=4)),
        (8, "int4", 128, SHARED(block_k=256, stages=2, splits=2)),
        (9, "fp8", 64, SHARED(block_k=128, stages=1, splits=3)),
        (5, "int4", 32, SHARED(block_k=128, stages=3)),
        (64, "int8", 32, SHARED(block_k=256, stages=2)),
        (65, "int8", None, SHARED(block_k=64, stages=3, block_t=64)),
        (65, "int4", 32, SHARED(block_k=64, stages=2, splits=2)),
        (130, "int4", 128, SHARED(block_k=64, stages=2, block_t=256)),
        (70, "fp8", 64, SHARED(block_k=128, stages=1, splits=3)),
    ],
    ids=str,
)
def test_kernels_equal_numpy(rows, method, group, config):
    check(rows, method, group, config, scale_dtype=jnp.float32 if group is None else jnp.float16)


@pytest.mark.parametrize(("rows", "block_k"), [(3, 128), (66, 64)])
def test_results_are_rounded_once(rows, block_k):
    config = SHARED(block_k=block_k, stages=2)
    check(rows, "int8", None, config, out_dtype=jnp.bfloat16, shape=(256, 256))
    check(rows, "int8", None, SHARED(block_k=block_k, stages=2, splits=2), out_dtype=jnp.bfloat16, shape=(128, 256))


@pytest.mark.slow
@pytest.mark.parametrize("block_k", [64, 128, 256])
@pytest.mark.parametrize("rows", [1, 17, 64, 65, 300])
@pytest.mark.parametrize("group", [None, 32, 64, 128])
@pytest.mark.parametrize("method", DTYPES)
def test_kernels_equal_numpy_at_every_shape(method, group, rows, block_k):
    if rows <= 64 and block_k == 64:
        return
    for splits, stages, block_t in [(1, 1, 64), (2, 2, 128), (3, 3, 128)]:
        if rows > 64 and block_k == 256 and stages > 1:
            continue  # more than shared memory holds
        if splits <= 512 // block_k:
            config = SHARED(block_k=block_k, stages=stages, splits=splits, block_t=block_t)
            scale_dtype = jnp.bfloat16 if stages == 2 else jnp.float32
            check(rows, method, group, config, scale_dtype=scale_dtype)


@pytest.mark.parametrize("rows", [16, 72])
@pytest.mark.parametrize("method", DTYPES)
def test_every_stored_value_comes_through(method, rows):
    """All 16 or 256 values of a type in one column, read out by rows of ones and zeros."""
    dtype = np.dtype({"int8": np.int8, "int4": ml_dtypes.int4, "fp8": ml_dtypes.float8_e4m3fn}[method])
    codes = np.arange(256, dtype=np.uint8)
    values = (codes % 16).astype(np.int8).astype(dtype) if method == "int4" else codes.view(dtype)
    values[np.isnan(values.astype(np.float32))] = 0
    stored = np.stack([np.roll(values, 3 * shift) for shift in range(128)])
    weight = QuantizedWeight(jnp.asarray(stored), jnp.ones((1, 128), jnp.float32))
    chosen = np.arange(rows) * 256 // rows
    x = jnp.asarray(np.eye(256)[chosen], jnp.bfloat16)
    got = run(x, weight, SHARED(block_k=128, stages=2), jnp.float32)
    np.testing.assert_array_equal(got, stored.astype(np.float32).T[chosen])


@pytest.mark.parametrize(("rows", "block_k"), [(6, 128), (66, 64)])
def test_padding_rows_stay_to_themselves(rows, block_k):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((rows, 256))
    weight = random_weight(rng, "int4", (128, 256), 64)
    config = SHARED(block_k=block_k, stages=2)
    clean = run(jnp.asarray(x, jnp.bfloat16), weight, config)
    x[4:] = np.nan
    dirty = run(jnp.asarray(x, jnp.bfloat16), weight, config)
    np.testing.assert_array_equal(dirty[:4], clean[:4])
    assert np.isnan(np.asarray(dirty[4:], np.float32)).all()


def abstract(rows=8, method="int8", group=None, *, shape=(256, 1024), dtype=jnp.bfloat16, scale_dtype=jnp.float32):
    outputs, inputs = shape
    groups = 1 if group is None else inputs // group
    weight = QuantizedWeight(
        jax.ShapeDtypeStruct(shape, DTYPES[method]), jax.ShapeDtypeStruct((groups, outputs), scale_dtype)
    )
    return jax.ShapeDtypeStruct((rows, inputs), dtype), weight


def lower(arrays, **options):
    def multiply(x, weight):
        return quantized_matmul(x, weight, **options)

    return jax.jit(multiply).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("rows", [8, 512])
@pytest.mark.parametrize("group", [None, 32, 128])
@pytest.mark.parametrize("method", DTYPES)
def test_every_method_lowers_for_cuda(method, group, rows):
    assert "mosaic_gpu" in lower(abstract(rows, method, group), implementation="hopper")


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 16, 40, 64, 65, 512])
@pytest.mark.parametrize("group", [None, 32, 64, 128])
@pytest.mark.parametrize("method", DTYPES)
def test_every_variant_lowers_for_cuda(method, group, rows):
    for operand, block_k, scale_dtype in itertools.product(
        ("registers", "shared"), (64, 128, 256), (jnp.float32, jnp.bfloat16, jnp.float16)
    ):
        if rows > 64 or block_k > 64:
            config = HopperConfig(block_k=block_k, stages=1, splits=2, operand=operand)
            arrays = abstract(rows, method, group, scale_dtype=scale_dtype)
            assert "mosaic_gpu" in lower(arrays, implementation="hopper", config=config, out_dtype=jnp.float32)


@pytest.mark.parametrize("rows", [1, 8, 16, 64, 65, 128, 512, 2048])
@pytest.mark.parametrize("group", [None, 32, 128])
@pytest.mark.parametrize("method", DTYPES)
def test_default_configs_are_possible(method, group, rows):
    for shape in [(128, 128), (6144, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]:
        arrays = abstract(rows, method, group, shape=shape)
        config = hopper.default_config(*arrays)
        assert hopper.check(*arrays, config) == config


BYTES = in_bytes(quantize(jnp.ones((128, 128)), "int4"))


@pytest.mark.parametrize(
    ("arrays", "config", "message"),
    [
        (abstract(dtype=jnp.float32), None, "activations in bfloat16 only, not float32"),
        (abstract(shape=(192, 1024)), None, "multiples of 128 output and input channels, not 192, 1024"),
        (abstract(shape=(256, 576)), None, "multiples of 128 output and input channels, not 256, 576"),
        (abstract(group=16), None, "groups of 32, 64 and 128 input channels or one a row, not 16"),
        (abstract(scale_dtype=jnp.float8_e8m0fnu), None, "float32, float16 and bfloat16, not float8_e8m0fnu"),
        ((jnp.ones((8, 128), jnp.bfloat16), BYTES), None, "types of their own, not int4 in bytes"),
        (abstract(rows=0), None, "1 row or more, not 0"),
        (abstract(), HopperConfig(block_k=64, stages=2), "stages of 128 or 256 input channels, not 64"),
        (abstract(shape=(128, 384)), HopperConfig(block_k=256, stages=2), "no multiple of the 256 of a stage"),
        (abstract(), HopperConfig(block_k=128, stages=2, splits=9), "8 steps of input channels do not make 9 splits"),
        (abstract(), HopperConfig(block_k=128, stages=32), "shared memory holds 21 stages of 128 .* not 32"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused_by_name(arrays, config, message):
    with pytest.raises(ValueError, match=message):
        lower(arrays, implementation="hopper", config=config)


def test_other_result_types_are_refused():
    with pytest.raises(ValueError, match="return float32 or bfloat16, not float16"):
        lower(abstract(), implementation="hopper", out_dtype=jnp.float16)


def test_the_interpreter_needs_operands_from_shared_memory():
    with pytest.raises(ValueError, match='operand must be "shared"'):
        hopper.matmul(*abstract(), interpret=plgpu.InterpretGPUParams())


@pytest.mark.parametrize(
    "option", [{"block_k": 96}, {"stages": 0}, {"stages": 33}, {"splits": 0}, {"block_t": 32}, {"operand": "memory"}]
)
def test_impossible_configs_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        HopperConfig(**{"block_k": 128, "stages": 2} | option)


def test_arrays_that_do_not_fit_are_refused():
    x, weight = abstract()
    with pytest.raises(ValueError, match="rows of 1024 input channels"):
        lower((jax.ShapeDtypeStruct((8, 512), jnp.bfloat16), weight))
    with pytest.raises(ValueError, match=r"\(1, 128\) are not \[divisor of 1024, 256\]"):
        lower((x, QuantizedWeight(weight.values, jax.ShapeDtypeStruct((1, 128), jnp.float32))))
    with pytest.raises(ValueError, match="int8, int4, float8_e4m3fn, float4_e2m1fn, not uint8"):
        lower((x, QuantizedWeight(jax.ShapeDtypeStruct((256, 1024), jnp.uint8), weight.scales)))


def test_unknown_implementations_are_refused():
    with pytest.raises(ValueError, match="must be one of auto, xla, cpu, hopper, native, not 'triton'"):
        lower(abstract(), implementation="triton")


def test_a_cpu_takes_xla():
    choice = choose_implementation(*abstract())
    assert choice.implementation == "xla" and "device is a cpu" in choice.reason
    assert "mosaic_gpu" not in lower(abstract())


@pytest.mark.parametrize(
    ("capability", "arrays", "implementation", "reason"),
    [
        ("9.0", abstract(), "hopper", "compute capability 9.0"),
        ("9.0", abstract(512, "int4", 128), "hopper", "compute capability 9.0"),
        ("8.0", abstract(), "xla", "compute capability 8.0"),
        ("10.0", abstract(), "xla", "compute capability 10.0"),
        ("9.0", abstract(shape=(256, 576)), "xla", "not 256, 576"),
    ],
)
def test_only_hopper_gpus_take_the_kernels(monkeypatch, capability, arrays, implementation, reason):
    gpu = SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda backend=None: [gpu])
    choice = choose_implementation(*arrays)
    assert choice.implementation == implementation and reason in choice.reason
    assert ("mosaic_gpu" in lower(arrays)) == (implementation == "hopper")


def test_a_program_for_the_cpu_takes_xla_beside_a_hopper_gpu(monkeypatch):
    gpu = SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(jax, "devices", lambda backend=None: [gpu])
    text = jax.jit(quantized_matmul).trace(*abstract()).lower(lowering_platforms=("cpu",)).as_text()
    assert "mosaic_gpu" not in text


@pytest.mark.slow
def test_the_benchmark_cases_are_right():
    """Each tiny case in the interpreter, and each real one lowers for CUDA; names say what is what."""
    for case in bench.cases(tiny=True):
        arrays = case.inputs(jax.random.key(3))
        with plgpu.force_gpu_interpret_mode():
            output = jax.jit(case.kernel)(*arrays)
        expected = np.asarray(jax.jit(case.reference)(*arrays), np.float64)
        assert error(output, expected) < case.tolerance
        assert case.spot_check(*(np.asarray(array) for array in (output, *arrays))) < case.tolerance
    real = list(bench.cases())
    assert len({case.name for case in real}) == len(real)
    assert real[0].name == "qkv 8x6144x4096 int8"
    assert real[0].bytes_moved == 6144 * 4096 + 6144 * 4 + 2 * 8 * (6144 + 4096)


@pytest.mark.slow
def test_the_benchmark_cases_lower_for_cuda():
    for case in bench.cases():
        arrays = jax.eval_shape(case.inputs, jax.random.key(0))
        text = jax.jit(case.kernel).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
        assert "mosaic_gpu" in text
