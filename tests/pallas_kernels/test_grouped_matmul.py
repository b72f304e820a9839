"""Rows that are sorted by expert, each times its expert's matrix.

The Hopper kernel runs in Mosaic's interpreter, which fills fresh shared memory with NaN and raises on data races, and
is lowered for CUDA.
"""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.grouped_matmul import HopperConfig, bench, choose_implementation, grouped_matmul, hopper
from pallas_kernels.grouped_matmul.reference import plan
from pallas_kernels.quantized_matmul import dequantize, in_bytes, quantize

# the interpreter's arithmetic warns of the NaN that it meets in unused places
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

BF16 = jnp.bfloat16

HOPPER = SimpleNamespace(platform="gpu", compute_capability="9.0")


def inputs(sizes, *, outputs=64, width=64, unused=0, dtype=BF16):
    """Random rows and matrices; rows past the last group hold NaN."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((sum(sizes) + unused, width))
    x[sum(sizes) :] = np.nan
    weights = rng.standard_normal((len(sizes), outputs, width))
    return jnp.asarray(x, dtype), jnp.asarray(weights, dtype), jnp.asarray(sizes, jnp.int32)


def check(multiply, arguments):
    """Against a loop in float64."""
    got = multiply(*arguments)
    x, weights, sizes = (np.asarray(array, np.float64) for array in arguments)
    want, begin = np.zeros((len(x), weights.shape[1])), 0
    for matrix, size in zip(weights, sizes.astype(int), strict=True):
        want[begin : begin + size] = x[begin : begin + size] @ matrix.T
        begin += size
    rounding = float(jnp.finfo(got.dtype).eps)
    assert got.dtype == arguments[0].dtype
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rounding, atol=1e-4)


PLAN = jax.jit(plan, static_argnames=("rows", "rows_of_tile", "align"))

SIZES = [
    [1],
    [5, 0, 3],
    [0, 0, 0],
    [0, 0, 100],
    [8, 16, 64, 0, 1],
    [1] * 40,
    [7, 1, 129, 0, 0, 31],
]


@pytest.mark.parametrize("dtype", [jnp.float32, BF16])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_each_row_meets_its_expert(sizes, dtype):
    multiply = jax.jit(partial(grouped_matmul, implementation="xla"))
    check(multiply, inputs(sizes, outputs=24, width=40, unused=3, dtype=dtype))


@pytest.mark.parametrize("method", ["int8", "int4", "fp8", "mxfp4"])
def test_each_row_meets_its_expert_in_few_bits(method):
    """Of experts without rows nothing is read."""
    sizes = [5, 0, 3, 17]
    x, weights, counts = inputs(sizes, outputs=24, width=64, unused=3)
    each = [quantize(matrix, method, 32) for matrix in weights]
    stack = in_bytes(jax.tree.map(lambda *parts: jnp.stack(parts), *each))
    stack = replace(stack, scales=stack.scales.at[1].set(jnp.nan))
    got = np.asarray(jax.jit(partial(grouped_matmul, implementation="xla"))(x, stack, counts), np.float32)
    begin = 0
    for weight, size in zip(each, sizes, strict=True):
        rows = x[begin : begin + size].astype(jnp.float32)
        want = np.asarray(rows @ dequantize(weight).T)
        assert np.linalg.norm(got[begin : begin + size] - want) <= 2e-2 * np.linalg.norm(want)
        begin += size
    assert not got[begin:].any()
    choice = choose_implementation(x, stack, device=HOPPER)
    assert choice.implementation == "xla" and "quantized" in choice.reason
    lowered = jax.jit(grouped_matmul).trace(x, stack, counts).lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.while" in lowered and "mosaic" not in lowered


ROWS = 50


@pytest.mark.parametrize(("rows_of_tile", "align"), [(8, 1), (64, 1), (8, 8), (16, 8), (64, 8)])
@settings(max_examples=40, deadline=None)
@given(ends=st.lists(st.integers(0, ROWS), min_size=7, max_size=7).map(sorted))
def test_tiles_cover_each_row_once(rows_of_tile, align, ends):
    sizes, rows = np.diff([0, *ends]), ends[-1]
    tiles = PLAN(jnp.asarray(sizes, jnp.int32), ROWS, rows_of_tile, align=align)
    expert, start, used, place = (np.asarray(part) for part in tiles)
    assert used <= len(expert) == len(start) and (start % align == 0).all()
    assert (start >= 0).all() and (start + rows_of_tile <= max(-(-ROWS // align) * align, rows_of_tile)).all()
    tile, within = place[:rows] // rows_of_tile, place[:rows] % rows_of_tile
    assert (tile < used).all()
    np.testing.assert_array_equal(start[tile] + within, np.arange(rows))
    np.testing.assert_array_equal(expert[tile], np.repeat(np.arange(len(sizes)), sizes))


def test_there_is_a_place_for_as_many_tiles_as_there_can_be():
    """Rows of an expert begin just before a multiple of 8 and end just after one; experts have one row each."""
    for sizes in ([7, 2, 14, 10, 8, 9], [1] * 50):
        for rows_of_tile, align in ((8, 1), (8, 8)):
            tiles = PLAN(jnp.asarray(sizes, jnp.int32), sum(sizes), rows_of_tile, align=align)
            assert tiles.used <= len(tiles.expert)


def interpreted(config=None):
    interpret = plgpu.InterpretGPUParams(detect_races=True)
    return jax.jit(partial(hopper.grouped_matmul, config=config, interpret=interpret))


@pytest.mark.parametrize(
    ("sizes", "shape", "config"),
    [
        ([5, 0, 3, 9], {"outputs": 128, "width": 128, "unused": 3}, None),
        ([1] * 6, {"outputs": 64, "width": 192}, None),
        ([70, 0, 59], {"outputs": 192, "width": 192}, HopperConfig(block_t=64, block_k=64, stages=2)),
        ([3, 12], {"outputs": 128, "width": 256}, HopperConfig(block_t=8, block_k=64, stages=2)),
        ([0, 0], {"unused": 2}, None),
    ],
)
def test_the_kernel_multiplies_each_row_with_its_expert(sizes, shape, config):
    check(interpreted(config), inputs(sizes, **shape))


@pytest.mark.slow
@pytest.mark.parametrize("block_t", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("sizes", SIZES[-3:], ids=str)
def test_the_kernel_multiplies_each_row_with_its_expert_in_tiles_of_every_size(sizes, block_t):
    for outputs, width, block_k, stages in [(64, 128, 64, 2), (128, 512, 128, 2), (192, 192, 64, 2)]:
        config = HopperConfig(block_t=block_t, block_k=block_k, stages=stages)
        check(interpreted(config), inputs(sizes, outputs=outputs, width=width, unused=5))


def abstract(rows=64, experts=4, outputs=128, width=256, dtype=BF16):
    shape = jax.ShapeDtypeStruct
    return shape((rows, width), dtype), shape((experts, outputs, width), dtype), shape((experts,), jnp.int32)


def lower(arrays, platform="cuda", **options):
    return jax.jit(partial(grouped_matmul, **options)).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("block_t", [8, 16, 32, 64, 128])
def test_every_tile_size_lowers_for_cuda(block_t):
    for outputs, block_k in [(128, 128), (192, 64)]:
        config = HopperConfig(block_t=block_t, block_k=block_k, stages=2)
        assert "mosaic_gpu" in lower(abstract(outputs=outputs), implementation="hopper", config=config)


@pytest.mark.parametrize("rows", [1, 64, 4096])
@pytest.mark.parametrize(("outputs", "width"), [(2048, 768), (2880, 2880), (1536, 2048)])
def test_the_default_config_lowers_for_cuda(rows, outputs, width):
    arrays = abstract(rows=rows, experts=32, outputs=outputs, width=width)
    assert "mosaic_gpu" in lower(arrays, implementation="hopper")


@pytest.mark.parametrize(
    ("arrays", "config", "message"),
    [
        (abstract(dtype=jnp.float32), None, "bfloat16 only, and the rows are float32"),
        (abstract(outputs=96), None, "multiples of 64 output and input channels, not 96, 256"),
        (abstract(width=100), None, "multiples of 64 output and input channels, not 128, 100"),
        (abstract(rows=0), None, "1 row or more, not 0"),
        (
            abstract(width=192),
            HopperConfig(block_t=8, block_k=128, stages=2),
            "192 input channels are no multiple of the 128 of a stage",
        ),
        (
            abstract(),
            HopperConfig(block_t=128, block_k=128, stages=4),
            "shared memory holds 2 stages of 128 input channels, not 4",
        ),
    ],
)
def test_what_the_kernel_cannot_do_is_refused_by_name(arrays, config, message):
    with pytest.raises(ValueError, match=message):
        lower(arrays, implementation="hopper", config=config)
    choice = choose_implementation(*arrays[:2], config=config, device=HOPPER)
    assert choice.implementation == "xla" and message in choice.reason


@pytest.mark.parametrize("option", [{"block_t": 24}, {"block_t": 256}, {"block_k": 32}, {"stages": 1}, {"stages": 33}])
def test_impossible_configs_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        HopperConfig(**{"block_t": 16, "block_k": 64, "stages": 2, **option})


@pytest.mark.parametrize(
    "arrays",
    [
        (abstract()[0], abstract(width=128)[1], abstract()[2]),
        (abstract()[0], abstract()[1], abstract(experts=3)[2]),
        (abstract()[0], abstract(dtype=jnp.float32)[1], abstract()[2]),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(arrays):
    with pytest.raises(ValueError, match=r"no rows \[T, I\], matrices \[E, O, I\] of one type and sizes \[E\]"):
        lower(arrays)


def test_unknown_implementations_are_refused():
    with pytest.raises(ValueError, match='must be "auto", "xla" or "hopper", not \'triton\''):
        lower(abstract(), implementation="triton")


@pytest.mark.parametrize(
    ("device", "implementation", "reason"),
    [
        (None, "xla", "device is a cpu"),
        (HOPPER, "hopper", "compute capability 9.0"),
        (SimpleNamespace(platform="gpu", compute_capability="8.9"), "xla", "compute capability 8.9"),
    ],
)
def test_only_hopper_gpus_take_the_kernel(monkeypatch, device, implementation, reason):
    if device is not None:
        monkeypatch.setattr(jax, "devices", lambda backend=None: [device])
    choice = choose_implementation(*abstract()[:2])
    assert choice.implementation == implementation and reason in choice.reason
    assert ("mosaic_gpu" in lower(abstract())) == (implementation == "hopper")
    assert "mosaic_gpu" not in lower(abstract(), "cpu")


@pytest.mark.slow
def test_the_benchmark_compares_like_with_like():
    """Every tiny case in the interpreter, and the peer, against what the case calls right."""
    count = 0
    for count, case in enumerate(bench.cases(tiny=True), 1):
        arrays = case.inputs(jax.random.key(count))
        with plgpu.force_gpu_interpret_mode():
            outputs = [jax.jit(case.kernel)(*arrays)]
        outputs += [jax.jit(function)(*arrays) for function in (case.reference, *case.peers.values())]
        for output in outputs:
            assert case.spot_check(np.asarray(output), *map(np.asarray, arrays)) <= case.tolerance
    assert count == 2
    for case in bench.cases():
        assert case.bytes_moved > 0 and case.flops > 0
