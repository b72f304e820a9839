"""Rotating queries and keys, and writing keys and values into pages.

The Hopper kernel runs in Mosaic's interpreter, which fills fresh shared memory with NaN and raises on data races, and
is lowered for CUDA.
"""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import core
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.kv_write import KvPages, bench, choose_implementation, hopper, rotate_and_write

# the interpreter's arithmetic warns of the NaN that it meets in unused places
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

BF16, INT8, FP8 = jnp.bfloat16, jnp.int8, jnp.float8_e4m3fn

INTERPRETED = jax.jit(partial(hopper.rotate_and_write, interpret=plgpu.InterpretGPUParams(detect_races=True)))
XLA = jax.jit(partial(rotate_and_write, implementation="xla"))


def inputs(
    *, tokens=5, heads=8, kv_heads=2, head_dim=64, rotary=None, page_size=16, pages=3, dtype=BF16, stored=None, seed=0
):  # fmt: skip
    """Random arguments; no two tokens have one place."""
    rng = np.random.default_rng(seed)
    qkv = jnp.asarray(rng.standard_normal((tokens, heads + 2 * kv_heads, head_dim)), dtype)
    angle = rng.standard_normal((tokens, 1, (head_dim if rotary is None else rotary) // 2)).astype(np.float32)
    shape, stored = (pages, kv_heads, page_size, head_dim), stored or dtype
    cache = KvPages(*(jnp.asarray(rng.standard_normal(shape), stored) for _ in range(2)))
    if stored in (INT8, FP8):
        scales = (jnp.asarray(rng.standard_normal(shape[:3]), jnp.float32) for _ in range(2))
        cache = KvPages(cache.k, cache.v, *scales)
    place = jnp.asarray(rng.permutation(pages * page_size)[:tokens], jnp.int32)
    return qkv, (jnp.cos(angle), jnp.sin(angle)), cache, place // page_size, place % page_size


def values(pages):
    """What the cache says, in float64."""
    k, v = (np.asarray(array.astype(jnp.float32), np.float64) for array in pages[:2])
    scales = [1.0 if scale is None else np.asarray(scale, np.float64)[..., None] for scale in pages[2:]]
    return k * scales[0], v * scales[1]


def numpy_heads(qkv, rope):
    """Rotated queries, rotated keys and values in float64, all heads of a token in one array."""
    x, (cos, sin) = np.asarray(qkv.astype(jnp.float32), np.float64), (np.asarray(t, np.float64) for t in rope)
    half = cos.shape[-1]
    left, right, rest = np.split(x, [half, 2 * half], axis=-1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin, rest], axis=-1), x


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotary"), core([(8, 2, 64, 32), (3, 1, 8, 8), (4, 4, 80, 32)], 1)
)
@pytest.mark.parametrize(("dtype", "stored"), [(jnp.float32, jnp.float32), (BF16, BF16), (BF16, INT8), (BF16, FP8)])
def test_heads_are_rotated_and_go_to_their_places(heads, kv_heads, head_dim, rotary, dtype, stored):
    arguments = inputs(
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, rotary=rotary, dtype=dtype, stored=stored, page_size=4
    )
    qkv, rope, old, page, offset = arguments
    q, new = rotate_and_write(*arguments)
    assert q.dtype == dtype and new.k.dtype == new.v.dtype == stored
    rotated, plain = numpy_heads(qkv, rope)
    rounding = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(q.astype(jnp.float32)), rotated[:, :heads], rtol=rounding, atol=rounding)
    if stored == FP8:  # half a unit in the last of three places
        rounding = 2.0**-4
    ours = [rotated[:, heads : heads + kv_heads], plain[:, heads + kv_heads :]]
    for was, now, want in zip(values(old), values(new), ours, strict=True):
        atol = {INT8: np.abs(want).max(-1, keepdims=True) * (0.501 / 127), FP8: 2.0**-10}.get(stored, rounding)
        assert (np.abs(now[page, :, offset] - want) <= atol + rounding * np.abs(want) * (stored != INT8)).all()
        was[page, :, offset] = now[page, :, offset] = 0
        np.testing.assert_array_equal(now, was)


@pytest.mark.parametrize(("stored_as", "full"), [(INT8, 127), (FP8, 448)])
def test_quantising_fills_the_range_of_each_head_of_each_token(stored_as, full):
    """A head's scale is its own; zeros, tiny, huge and infinite numbers stay in range, and NaN stays in its head."""
    qkv, rope, pages, page, offset = inputs(heads=1, kv_heads=2, stored=stored_as, tokens=4)
    v = np.array(qkv[:, 3:].astype(jnp.float32))
    v[0, 0], v[0, 1, 5] = 0, 1e30
    v[1, 0] *= 2.0**-120
    v[1, 1, 7] = -np.inf
    v[2, 0, 3] = np.nan
    _, new = rotate_and_write(qkv.at[:, 3:].set(jnp.asarray(v, BF16)), rope, pages, page, offset)
    stored, scales = (np.asarray(a.astype(jnp.float32))[page, :, offset] for a in (new.v, new.v_scales))
    broken = np.zeros((4, 2), bool)
    broken[2, 0] = True
    assert np.isnan(stored[broken] * scales[broken][:, None]).all()
    assert np.isfinite(stored[~broken]).all() and (scales[~broken] >= np.finfo(np.float32).tiny).all()
    largest = np.abs(stored).max(-1)
    assert largest[0, 0] == 0 and largest[1, 0] <= 1
    np.testing.assert_array_equal(largest[[0, 1, 2, 3, 3], [1, 1, 1, 0, 1]], full)
    assert scales[0, 1] * stored[0, 1, 5] == pytest.approx(1e30, rel=0.01)
    assert scales[1, 1] * stored[1, 1, 7] == pytest.approx(-np.finfo(np.float32).max, rel=1e-5)


@pytest.mark.parametrize("stored", [BF16, INT8, FP8])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_donated_pages_are_written_in_place(monkeypatch, on_gpu, stored):
    """Also by the program that a machine with a Hopper GPU makes for its CPU: choosing does not cost a copy."""
    arguments = inputs(pages=200, stored=stored)
    if on_gpu:
        monkeypatch.setattr("pallas_kernels.kv_write.api.default_device", lambda: HOPPER)
    memory = jax.jit(rotate_and_write, donate_argnums=2).lower(*arguments).compile().memory_analysis()
    size = sum(array.nbytes for array in jax.tree.leaves(arguments[2]))
    assert memory.alias_size_in_bytes >= size and memory.temp_size_in_bytes < size / 4


def check(**shape):
    """The kernel against the reference, bit for bit: nothing is summed, so nothing depends on an order."""
    arguments = inputs(**shape)
    for got, want in zip(jax.tree.leaves(INTERPRETED(*arguments)), jax.tree.leaves(XLA(*arguments)), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(np.asarray(got.astype(jnp.float32)), np.asarray(want.astype(jnp.float32)))


@pytest.mark.parametrize("stored", core([INT8, BF16, FP8], 2))
@pytest.mark.parametrize(
    "shape",
    core(
        [
            {"head_dim": 64, "heads": 9, "kv_heads": 3},
            {"head_dim": 128, "heads": 14, "kv_heads": 2, "rotary": 96, "tokens": 1},
            {"head_dim": 64, "heads": 1, "kv_heads": 1, "rotary": 32, "page_size": 64, "pages": 1},
            {"head_dim": 128, "heads": 8, "kv_heads": 8, "page_size": 32},
            {"head_dim": 256, "heads": 4, "kv_heads": 1, "tokens": 6},
        ],
        2,
    ),
    ids=str,
)
def test_the_kernel_equals_the_reference(shape, stored):
    check(**shape, stored=stored)


@pytest.mark.slow
@pytest.mark.parametrize("stored", [BF16, INT8, FP8])
@pytest.mark.parametrize("page_size", [16, 32, 64])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_the_kernel_equals_the_reference_at_every_shape(head_dim, page_size, stored):
    grid = [(head_dim, *heads) for heads in ((1, 1), (32, 8), (15, 5), (16, 1), (17, 17))]
    if page_size == 16:
        grid += [(rotary, 6, 2) for rotary in range(32, head_dim, 32)]
    for rotary, heads, kv_heads in grid:
        check(
            head_dim=head_dim, page_size=page_size, stored=stored, rotary=rotary, heads=heads, kv_heads=kv_heads,
            tokens=2, seed=rotary,
        )  # fmt: skip


def test_padding_that_shares_a_place_harms_nobody():
    """Such writes race with each other, on a page that nobody reads; the race detector would say so."""
    qkv, rope, pages, page, offset = inputs(tokens=6, stored=FP8)
    page = jnp.asarray([0, 2, 0, 1, 0, 2], jnp.int32)
    offset = jnp.asarray([0, 4, 0, 4, 0, 5], jnp.int32)
    interpret = plgpu.InterpretGPUParams(detect_races=False)
    got = jax.jit(partial(hopper.rotate_and_write, interpret=interpret))(qkv, rope, pages, page, offset)
    want = XLA(qkv, rope, pages, page, offset)
    np.testing.assert_array_equal(*(np.asarray(q.astype(jnp.float32)) for q in (got[0], want[0])))
    for ours, theirs in zip(got[1], want[1], strict=True):
        np.testing.assert_array_equal(*(np.asarray(a.astype(jnp.float32))[1:] for a in (ours, theirs)))


@pytest.mark.parametrize("stored", [INT8, FP8])
def test_infinities_and_nan_are_quantised_as_by_the_reference(stored):
    qkv, *others = inputs(stored=stored, tokens=3)
    qkv = qkv.at[0, 8:, 3].set(jnp.inf).at[1, 8:, 5].set(jnp.nan).at[2, 8:].set(0)
    for got, want in zip(values(INTERPRETED(qkv, *others)[1]), values(XLA(qkv, *others)[1]), strict=True):
        np.testing.assert_array_equal(got, want)


HOPPER = SimpleNamespace(platform="gpu", compute_capability="9.0")


def lower(arguments, platform="cuda", implementation="hopper"):
    write = partial(rotate_and_write, implementation=implementation)
    return jax.jit(write, donate_argnums=2).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("stored", core([INT8, BF16, FP8], 1))
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_every_variant_lowers_for_cuda_and_keeps_the_donation(head_dim, stored):
    for rotary, heads, kv_heads in [(head_dim, 32, 8), (32, 9, 3), (head_dim - 32, 1, 1)]:
        text = lower(inputs(head_dim=head_dim, rotary=rotary, heads=heads, kv_heads=kv_heads, stored=stored))
        assert text.count("stablehlo.custom_call @mosaic_gpu") == 1
        arrays = 2 if stored == BF16 else 4
        # the pages are arguments 3 and on of the program, 5 and on of the kernel, and outputs 1 and on of both
        assert re.findall(r"tf.aliasing_output = (\d+)", text) == [str(1 + i) for i in range(arrays)]
        aliases = re.findall(r"output_tuple_indices = \[(\d+)\], operand_index = (\d+)", text)
        assert aliases == [(str(1 + i), str(5 + i)) for i in range(arrays)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (inputs(head_dim=96), "head dims 64, 128 and 256, not 96"),
        (inputs(rotary=48), "rotates a multiple of 32 dimensions, not 48"),
        (inputs(dtype=jnp.float32), "writes from bfloat16 only, not from float32"),
        (inputs(stored=jnp.float32), "pages of bfloat16, int8 and float8_e4m3fn, not of float32"),
        (inputs(heads=257), "up to 256 heads, not 257 query and 2 kv heads"),
        (inputs(tokens=0), "at least one token, not 0"),
        (inputs(head_dim=256, heads=256, kv_heads=256), "need 393216 bytes of shared memory, and there are 216064"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        lower(arguments)
    choice = choose_implementation(*arguments[:3], device=HOPPER)
    assert choice.implementation == "xla" and re.search(message, choice.reason)


def with_pages(**changed):
    qkv, rope, pages, page, offset = inputs(stored=FP8)
    return qkv, rope, pages._replace(**changed), page, offset


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (with_pages(k_scales=None), "pages of float8_e4m3fn need scales"),
        (with_pages(k=inputs()[2].k, v=inputs()[2].v), "pages of bfloat16 have no scales"),
        (with_pages(v=inputs()[2].v), "one shape and type, not float8_e4m3fn"),
        (with_pages(v_scales=jnp.ones((3, 2, 16), BF16)), r"scales must be float32\[3, 2, 16\], not bfloat16"),
        (with_pages(v_scales=jnp.ones((3, 2, 8))), r"not float32\[3, 2, 8\]"),
        (inputs(stored=jnp.uint8), "quantised pages must be int8 or float8_e4m3fn, not uint8"),
        ((inputs()[0][:, :4], *inputs()[1:]), "4 heads are no query heads and 2 x 2 kv heads"),
        ((*inputs()[:2], inputs(head_dim=128)[2], *inputs()[3:]), "heads of dim 64 .* pages of head dim 128"),
        ((inputs()[0], inputs(rotary=128)[1], *inputs()[2:]), r"must have one shape \[5, 1, R/2\] with 0 < R <= 64"),
        ((inputs()[0], inputs(tokens=4)[1], *inputs()[2:]), r"not \[4, 1, 32\] and \[4, 1, 32\]"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_belong_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rotate_and_write(*arguments)


def test_unknown_implementations_are_refused():
    with pytest.raises(ValueError, match="auto, xla, hopper, native, not 'triton'"):
        rotate_and_write(*inputs(), implementation="triton")


@pytest.mark.parametrize(
    ("device", "implementation", "reason"),
    [
        (None, "xla", "device is a cpu"),
        (HOPPER, "hopper", "compute capability 9.0"),
        (SimpleNamespace(platform="gpu", compute_capability="8.9"), "xla", "compute capability 8.9"),
    ],
)
def test_only_hopper_gpus_take_the_kernel(monkeypatch, device, implementation, reason):
    arguments = inputs()
    if device is not None:
        monkeypatch.setattr(jax, "devices", lambda backend=None: [device])
    choice = choose_implementation(*arguments[:3])
    assert choice.implementation == implementation and reason in choice.reason
    assert ("mosaic_gpu" in lower(arguments, implementation="auto")) == (implementation == "hopper")
    assert "mosaic_gpu" not in lower(arguments, "cpu", implementation="auto")


@pytest.mark.slow
def test_the_benchmark_compares_like_with_like():
    """Every tiny case, in the interpreter, through what the harness may use of a case."""
    names = set()
    for case in bench.cases(tiny=True):
        arrays = case.inputs(jax.random.key(len(names)))
        with plgpu.force_gpu_interpret_mode():
            got = jax.jit(case.kernel)(*arrays)
        want = jax.jit(case.reference)(*arrays)
        assert [(a.shape, a.dtype) for a in got] == [(a.shape, a.dtype) for a in arrays[: case.donated]]
        for ours, theirs in zip(case.checked(got), case.checked(want), strict=True):
            assert np.isfinite(np.asarray(theirs, np.float32)).all() and float(jnp.linalg.norm(theirs)) > 0
            error = jnp.linalg.norm((ours - theirs).ravel()) / jnp.linalg.norm(theirs.ravel())
            assert float(error) <= case.tolerance
        assert case.spot_check(*jax.tree.map(np.asarray, (got, *arrays))) <= case.tolerance
        names.add(case.name)
    assert len(names) == 2
    assert {type(case.bytes_moved) for case in bench.cases()} == {int}
