"""The kernels in C++ against the XLA forms, for shapes at and beside their block sizes, and how they are compiled."""

import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import core

from cvllm_jax.checkpoints.cache import cache_dir
from pallas_kernels import native
from pallas_kernels.kv_write import KvPages, rotate_and_write
from pallas_kernels.native import library
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.quantized_matmul import QuantizedWeight, dequantize, quantize, quantized_matmul

BF16, INT8, F32 = jnp.bfloat16, jnp.int8, jnp.float32

needs_kernels = pytest.mark.skipif(native.refusal() is not None, reason=f"no kernels here: {native.refusal()}")


@pytest.fixture(scope="module", autouse=True)
def compiled():
    if native.refusal() is None:
        assert native.load(cache_dir() / "native") is None


@needs_kernels
@pytest.mark.parametrize(("outputs", "inputs"), core([(33, 1536), (70, 68), (960, 576), (1, 4)], 2))
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_products_are_those_of_the_numbers_that_a_weight_stands_for(outputs, inputs, dtype):
    rng = np.random.default_rng(outputs)
    weight = quantize(jnp.asarray(rng.standard_normal((outputs, inputs)), F32), "int8")
    exact = np.asarray(dequantize(weight), np.float64)
    multiply = jax.jit(partial(quantized_matmul, implementation="native", out_dtype=F32))
    for rows in (1, 2, 3, 8, 9, 16, 17, 40, 65, 130):  # the forms for few and many, whole and cut blocks
        x = jnp.asarray(rng.standard_normal((rows, inputs)) * 10.0 ** rng.integers(-6, 6, (rows, 1)), dtype)
        got, want = np.asarray(multiply(x, weight), np.float64), np.asarray(x, np.float64) @ exact.T
        error = np.linalg.norm(got - want, axis=1) / np.linalg.norm(np.asarray(x, np.float64), axis=1)
        assert (error < 1e-4 * np.linalg.norm(exact)).all(), (rows, error.max())


@needs_kernels
def test_a_row_that_is_no_number_stays_alone_and_zeros_give_zeros():
    weight = quantize(jax.random.normal(jax.random.key(0), (48, 64)), "int8")
    multiply = jax.jit(partial(quantized_matmul, implementation="native"))
    for rows in (5, 24):
        x = jax.random.normal(jax.random.key(1), (rows, 64), BF16)
        clean = multiply(x, weight)
        dirty = multiply(x.at[1, 3].set(jnp.nan).at[2, 0].set(jnp.inf).at[3].set(0), weight)
        assert not jnp.isfinite(dirty[1:3]).any() and (dirty[3] == 0).all()
        others = jnp.asarray([0, *range(4, rows)])
        assert (dirty[others] == clean[others]).all()


@needs_kernels
def test_the_largest_bytes_do_not_overflow():
    values = jnp.full((16, 8192), -128, INT8)
    weight = QuantizedWeight(values, jnp.ones((1, 16), F32))
    for rows in (1, 20):
        y = quantized_matmul(jnp.full((rows, 8192), -3.0, F32), weight, implementation="native")
        np.testing.assert_allclose(y, 3 * 128 * 8192, rtol=1e-6)


@needs_kernels
def test_weights_that_the_kernel_does_not_do_are_multiplied_by_xla():
    x = jax.random.normal(jax.random.key(0), (3, 64), BF16)
    for method, group in (("int4", 32), ("int8", 32), ("fp8", None)):
        weight = quantize(jax.random.normal(jax.random.key(1), (8, 64)), method, group)
        got = quantized_matmul(x, weight, implementation="native")
        assert (got == quantized_matmul(x, weight, implementation="cpu")).all()


def attention_inputs(rng, *, sequences, heads, kv_heads, head_dim, page_size, width, dtype, cache):
    pages = sequences * width + 1
    shape = (pages, kv_heads, page_size, head_dim)
    options = {}
    if cache == INT8:
        k, v = (jnp.asarray(rng.integers(-127, 128, shape), INT8) for _ in "kv")
        options = {name: jnp.asarray(rng.uniform(1e-3, 2e-2, shape[:3]), F32) for name in ("k_scales", "v_scales")}
    else:
        k, v = (jnp.asarray(rng.standard_normal(shape), cache) for _ in "kv")
    tables = jnp.asarray(1 + rng.permutation(pages - 1).reshape(sequences, width), jnp.int32)
    starts = jnp.asarray(rng.integers(0, page_size * width, sequences), jnp.int32).at[-1].set(0)
    q = jnp.asarray(rng.standard_normal((sequences, 1, heads, head_dim)), dtype)
    return (q, k, v, tables, starts, jnp.ones(sequences, jnp.int32)), options


@needs_kernels
@pytest.mark.parametrize(
    ("dtype", "cache"),
    [(F32, F32), (BF16, INT8), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((BF16, BF16), (F32, INT8)))],
)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_size", "width"),
    core([(9, 3, 64, 16, 40), (4, 4, 80, 16, 9), (8, 1, 128, 32, 20), (14, 2, 64, 64, 10)], 2),
)
def test_decoding_gives_what_xla_gives(dtype, cache, heads, kv_heads, head_dim, page_size, width):
    rng = np.random.default_rng(heads)
    arguments, scales = attention_inputs(
        rng, sequences=3, heads=heads, kv_heads=kv_heads, head_dim=head_dim, page_size=page_size, width=width,
        dtype=dtype, cache=cache,
    )  # fmt: skip
    sinks = jnp.asarray(rng.standard_normal(heads), F32)
    for options in ({}, {"window": 37, "soft_cap": 3.0}, {"sinks": sinks}):
        attend = partial(paged_attention, *arguments, scale=head_dim**-0.5, **options, **scales)
        got, want = (attend(implementation=name).astype(F32) for name in ("native", "xla"))
        np.testing.assert_allclose(got, want, atol=2e-2 if dtype == BF16 else 2e-5)


@needs_kernels
def test_places_that_nobody_may_see_can_hold_anything():
    rng = np.random.default_rng(0)
    arguments, _ = attention_inputs(
        rng, sequences=2, heads=4, kv_heads=2, head_dim=32, page_size=16, width=4, dtype=F32, cache=F32
    )
    q, k, v, tables, *_ = arguments
    starts, counts = jnp.asarray([20, 0], jnp.int32), jnp.asarray([1, 0], jnp.int32)
    seen = {(int(tables[0, token // 16]), token % 16) for token in range(10, 21)}
    hidden = np.array([[(page, place) not in seen for place in range(16)] for page in range(k.shape[0])])
    dirty = [jnp.where(hidden[:, None, :, None], jnp.nan, pages) for pages in (k, v)]
    attend = partial(paged_attention, scale=0.2, window=11)
    want = attend(q, k, v, tables, starts, counts, implementation="xla")
    got = attend(q, *dirty, tables, starts, counts, implementation="native")
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    assert jnp.isfinite(got).all()  # the second is no sequence: finite, and nobody reads it


@needs_kernels
@pytest.mark.parametrize(
    ("tokens", "head_dim", "rotary", "page_size"), [(1, 64, 64, 16), (40, 80, 32, 16), (7, 16, 6, 32)]
)
@pytest.mark.parametrize(("dtype", "cache"), [(F32, F32), (BF16, BF16), (BF16, INT8), (F32, INT8)])
def test_writing_gives_what_xla_gives(tokens, head_dim, rotary, page_size, dtype, cache):
    rng = np.random.default_rng(tokens)
    heads, kv_heads, pages = 6, 2, 8
    qkv = jnp.asarray(rng.standard_normal((tokens, heads + 2 * kv_heads, head_dim)), dtype)
    angles = jnp.asarray(rng.uniform(0, 6, (tokens, 1, rotary // 2)), F32)
    stored = (pages, kv_heads, page_size, head_dim)
    before = [jnp.asarray(rng.integers(-9, 9, stored), cache) for _ in "kv"]
    before += [jnp.asarray(rng.uniform(0, 1, stored[:3]), F32) for _ in "kv" if cache == INT8]
    place = jnp.asarray(rng.permutation(pages * page_size)[:tokens], jnp.int32)
    rope = (jnp.cos(angles), jnp.sin(angles))
    results = [
        jax.jit(partial(rotate_and_write, implementation=name))(
            qkv, rope, KvPages(*before), place // page_size, place % page_size
        )
        for name in ("native", "xla")
    ]
    for got, want in zip(*map(jax.tree.leaves, results), strict=True):
        assert got.dtype == want.dtype
        unit = 1 if got.dtype == INT8 else 2e-2 if got.dtype == BF16 else 1e-5
        np.testing.assert_allclose(got.astype(F32), want.astype(F32), atol=unit)


@needs_kernels
def test_threads_can_multiply_at_once():
    weight = quantize(jax.random.normal(jax.random.key(0), (512, 256)), "int8")
    multiply = jax.jit(partial(quantized_matmul, implementation="native"))
    inputs = [jax.random.normal(jax.random.key(seed), (rows, 256)) for seed, rows in enumerate((1, 2, 7, 80))]
    want = [np.asarray(multiply(x, weight)) for x in inputs]
    wrong = []

    def repeat(index):
        for _ in range(200):
            if not np.array_equal(np.asarray(multiply(inputs[index], weight)), want[index]):
                wrong.append(index)

    workers = [threading.Thread(target=repeat, args=(index,)) for index in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_machine_without_a_compiler_or_the_instructions_says_so(monkeypatch):
    monkeypatch.setattr(library, "_cpu_flags", lambda: ["avx2"])
    if library.platform.system() == "Linux" and library.platform.machine() == "x86_64":
        assert "the processor has no avx512f" in native.refusal()
        monkeypatch.setattr(library, "_cpu_flags", lambda: list(library.FEATURES))
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert "there is no C++ compiler" in native.refusal()
    monkeypatch.setattr(library.platform, "system", lambda: "Darwin")
    assert "they are for Linux" in native.refusal()


@needs_kernels
def test_a_compiler_that_fails_is_a_reason_and_no_crash(monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "x.cc:1: error: no luck" >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setattr(library, "_outcome", [])
    assert "could not compile them: x.cc:1: error: no luck" in native.load(tmp_path / "native")


@needs_kernels
def test_a_library_that_others_could_have_written_is_compiled_anew(monkeypatch, tmp_path):
    compiled = []

    def compile_quickly(compiler, sources, work):
        compiled.append(sources)
        (work / "native.so").write_bytes(b"ours")
        return work / "native.so"

    monkeypatch.setattr(library, "_compile", compile_quickly)
    made = library.build(tmp_path / "native")
    assert library.build(tmp_path / "native") == made and len(compiled) == 1
    made.write_bytes(b"theirs")
    made.chmod(0o666)
    assert library.build(tmp_path / "native").read_bytes() == b"ours" and len(compiled) == 2
    assert made.stat().st_mode & 0o022 == 0
    (tmp_path / "native").chmod(0o777)
    elsewhere = library.build(tmp_path / "native")
    assert elsewhere.read_bytes() == b"ours" and elsewhere != made
