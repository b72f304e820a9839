"""Every kernel, executed, against its reference."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.gpu.kernels import cases, check
from bench.gpu.operations import ATTENTION_PEERS, operations
from pallas_kernels.paged_attention import paged_attention

SMALL = [
    pytest.param(case, id=f"{operation}: {case.name}")
    for operation in operations()
    if operation != ATTENTION_PEERS
    for case in cases(operation, tiny=True)
]


@pytest.mark.parametrize("case", SMALL)
def test_small_cases(case):
    arrays = jax.jit(case.inputs)(jax.random.key(time.time_ns() % 2**32))
    found = check(case, arrays)
    assert "status" not in found, found


@pytest.mark.parametrize("options", [{}, {"window": 100}, {"soft_cap": 5.0}, {"sinks": True}], ids=str)
@pytest.mark.parametrize("cache", ["bf16", "int8", "fp8"])
@pytest.mark.parametrize("queries", [1, 128])
@pytest.mark.parametrize(("head_dim", "group", "page_size"), [(64, 1, 16), (128, 4, 16), (128, 16, 64), (256, 2, 64)])
def test_attention(head_dim, group, page_size, queries, cache, options):
    """Lengths of nothing, one token, edges of pages and long ones together; unused pages hold NaN."""
    rng = np.random.default_rng(time.time_ns() % 2**32)
    kv_heads = 2
    ends = np.array([0, queries, page_size * 9, page_size * 9 + 1, 1000, 5000])
    counts = np.minimum(ends, queries)
    pages = -(-ends // page_size)
    shape = (1 + int(pages.sum()), kv_heads, page_size, head_dim)
    tables = np.zeros((len(ends), int(pages.max())), np.int32)
    numbers = 1 + rng.permutation(shape[0] - 1)
    for row, count in enumerate(pages):
        tables[row, :count] = numbers[: count]
        numbers = numbers[count:]
    k, v = (rng.standard_normal(shape, np.float32) for _ in range(2))
    k[0] = v[0] = np.nan
    for row, end in enumerate(ends):  # past the end of the last page
        if end % page_size:
            k[tables[row, pages[row] - 1], :, end % page_size :] = np.nan
            v[tables[row, pages[row] - 1], :, end % page_size :] = np.nan
    dtype = {"bf16": jnp.bfloat16, "int8": jnp.int8, "fp8": jnp.float8_e4m3fn}[cache]
    options = {"scale": head_dim**-0.5, **options}
    if options.pop("sinks", False):
        options["sinks"] = jnp.asarray(rng.standard_normal(kv_heads * group), jnp.float32)
    unit = 1.0
    if cache == "int8":
        unit = 1 / 30
        k, v = (np.nan_to_num((x / unit).round(), nan=77) for x in (k, v))
    if cache != "bf16":
        for name in ("k_scales", "v_scales"):
            options[name] = jnp.asarray(rng.uniform(0.5, 2, shape[:3]) * unit, jnp.float32)
    q = jnp.asarray(rng.standard_normal((len(ends), queries, kv_heads * group, head_dim)), jnp.bfloat16)
    arrays = (jnp.asarray(k, dtype), jnp.asarray(v, dtype), tables, ends - counts, counts)
    arrays = (q, *arrays[:2], *(jnp.asarray(array, jnp.int32) for array in arrays[2:]))
    got, want = (
        np.asarray(jax.jit(lambda *a, name=name: paged_attention(*a, implementation=name, **options))(*arrays), float)
        for name in ("hopper", "xla")
    )
    for row, count in enumerate(counts):
        error = np.linalg.norm(got[row, :count] - want[row, :count]) / max(np.linalg.norm(want[row, :count]), 1e-9)
        assert error < 1e-2, f"sequence of {ends[row]}: {error}"
    assert np.isfinite(got).all()
