"""The Hopper kernels without a GPU: in Mosaic's interpreter against the reference, and lowered for CUDA.

The interpreter simulates TMA and barriers, fills fresh shared memory with NaN, and raises on data races and on reads
outside an array. Pools hold NaN wherever no sequence has a token, and table entries that must not be followed name
pages that do not exist.
"""

import itertools
import zlib
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import core
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.paged_attention import HopperConfig, choose_implementation, paged_attention, reference
from pallas_kernels.paged_attention.hopper import check as limits
from pallas_kernels.paged_attention.hopper_decode import decode, plan
from pallas_kernels.paged_attention.hopper_prefill import prefill

# the interpreter's arithmetic warns of the NaN that it meets in unused places
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

INT8, FP8 = jnp.int8, jnp.float8_e4m3fn

NO_PAGE = 10**6

#: Few pieces: the interpreter takes its time for unused ones too.
SMALL = HopperConfig(stages=2, thread_blocks=4, min_tokens=64)

ONE_STAGE = HopperConfig(stages=1)


def pool(ends, firsts, *, kv_heads, head_dim, page_size, rng):
    """Pages and tables of sequences of so many tokens; what lies before a first page or past the end is poison."""
    counts = [-(-end // page_size) for end in ends]
    order = rng.permutation(sum(counts) + 2)
    k, v = (np.full((len(order), kv_heads, page_size, head_dim), np.nan, np.float32) for _ in range(2))
    # no column past the longest sequence's last page: following one more entry would be a read outside the table
    tables = np.full((len(ends), max(counts)), NO_PAGE, np.int32)
    free = iter(order.tolist())
    for row, end in enumerate(ends):
        for index in range(firsts[row], counts[row]):
            page = tables[row, index] = next(free)
            used = min(page_size, end - index * page_size)
            for array in (k, v):
                array[page, :, :used] = rng.standard_normal((kv_heads, used, head_dim))
    return k, v, tables


def check(
    starts, counts, *, queries, head_dim, page_size, group, kv_heads=1, window=None, soft_cap=None, sinks=False,
    stored=jnp.bfloat16, config=SMALL,
):  # fmt: skip
    """The kernel against the reference in float32, in the interpreter with its race detector."""
    options = f"{starts} {counts} {head_dim} {page_size} {group} {kv_heads} {window} {soft_cap} {sinks} {config}"
    rng = np.random.default_rng(zlib.crc32(options.encode()))
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    firsts = [0 if window is None else max(start - window + 1, 0) // page_size for start in starts]
    k, v, tables = pool(ends, firsts, kv_heads=kv_heads, head_dim=head_dim, page_size=page_size, rng=rng)
    q = rng.standard_normal((len(starts), queries, kv_heads * group, head_dim))
    for row, count in enumerate(counts):
        q[row, count:] = np.nan  # padding
    scales = {}
    if stored != jnp.bfloat16:
        for name, pages in (("k_scales", k), ("v_scales", v)):
            scales[name] = jnp.asarray(np.where(np.isnan(pages).any(-1), np.nan, rng.uniform(0.1, 2, pages.shape[:3])),
                                       jnp.float32)  # fmt: skip
    q = jnp.asarray(q, jnp.bfloat16)
    if stored == jnp.int8:
        k, v = (np.nan_to_num((x * 30).round(), nan=77) for x in (k, v))
        scales = {name: scale / 30 for name, scale in scales.items()}
    k, v = (jnp.asarray(x, stored) for x in (k, v))
    starts, counts = (jnp.asarray(x, jnp.int32) for x in (starts, counts))
    # one head in four has no sink
    numbers = np.where(np.arange(kv_heads * group) % 4 == 3, -np.inf, rng.standard_normal(kv_heads * group))
    sinks = jnp.asarray(numbers, jnp.float32) if sinks else None
    kernel, expected = (decode, reference.decode) if queries == 1 else (prefill, reference.prefill)
    options = {"scale": head_dim**-0.5, "window": window, "soft_cap": soft_cap}
    interpret = plgpu.InterpretGPUParams(detect_races=True)
    got = jax.jit(partial(kernel, config=config, interpret=interpret, **options))(
        q, k, v, jnp.asarray(tables), starts, counts, sinks=sinks, **scales
    )
    tables = jnp.asarray(np.where(tables == NO_PAGE, 0, tables))
    want = jax.jit(partial(expected, **options))(
        *(x.astype(jnp.float32) for x in (q, k, v)), tables, starts, counts, sinks=sinks, **scales
    )
    assert got.dtype == jnp.bfloat16 and got.shape == want.shape
    got, want = np.asarray(got, np.float32), np.asarray(want)
    assert np.isfinite(got).all()
    for row, count in enumerate(counts.tolist()):
        np.testing.assert_allclose(got[row, :count], want[row, :count], atol=0.01, rtol=0.01)


def check_decode(lengths=None, *, page_size, **shape):
    if lengths is None:
        lengths = [0, 1, 3 * page_size - 1, 2 * page_size, page_size + 1, 150]
    starts, counts = [max(length - 1, 0) for length in lengths], [min(length, 1) for length in lengths]
    check(starts, counts, queries=1, page_size=page_size, **shape)


@pytest.mark.parametrize(
    "case",
    core(
        [
            {"head_dim": 128, "page_size": 16, "group": 4, "kv_heads": 2, "window": 20, "soft_cap": 5.0, "sinks": True},
            {"head_dim": 128, "page_size": 32, "group": 4, "window": 40, "stored": INT8},
            {"head_dim": 256, "page_size": 64, "group": 9, "window": 100},
            {"head_dim": 128, "page_size": 16, "group": 16, "soft_cap": 5.0, "sinks": True, "stored": FP8},
        ],
        2,
    ),
    ids=str,
)
def test_decoding_equals_the_reference(case):
    check_decode(**case)


@pytest.mark.parametrize(
    "case",
    core(
        [
            {"head_dim": 128, "page_size": 64, "group": 2, "window": 40, "soft_cap": 5.0, "sinks": True},
            {"head_dim": 64, "page_size": 16, "group": 1, "stored": INT8, "config": ONE_STAGE},
            {"head_dim": 64, "page_size": 16, "group": 1, "config": HopperConfig(block_kv=64, stages=2)},
            {"head_dim": 128, "page_size": 32, "group": 3, "window": 90, "stored": FP8, "config": ONE_STAGE},
        ],
        2,
    ),
    ids=str,
)
def test_prefill_equals_the_reference(case):
    """Blocks at the start and in the middle of sequences, full, partial and unused."""
    check([0, 233, 0], [128, 70, 0], queries=128, **case)


def test_prefill_of_odd_blocks():
    """Fewer queries than a tile has rows, an odd number of parts, several kv heads."""
    check([100, 3], [20, 1], queries=20, kv_heads=2, head_dim=64, page_size=16, group=3)


def abstract(head_dim, page_size, group, *, batch=8, kv_heads=4, queries=1, dtype=jnp.bfloat16, stored=None):
    """Shapes and types of the arguments, without scales."""
    shape, ints = jax.ShapeDtypeStruct, jax.ShapeDtypeStruct((batch,), jnp.int32)
    q = shape((batch, queries, kv_heads * group, head_dim), dtype)
    pages = shape((100, kv_heads, page_size, head_dim), stored or dtype)
    return q, pages, pages, shape((batch, 40), jnp.int32), ints, ints


def grid(decoding):
    """Every head dim, page size and type of cache, twice; all else comes up equally often, in an order of its own."""
    shapes = list(itertools.product((64, 128, 256), (16, 32, 64), (jnp.bfloat16, INT8, FP8))) * 2
    rng = np.random.default_rng(0)

    def drawn(*values):
        return [values[i] for i in rng.permutation(len(shapes)) % len(values)]

    options = {}, {"window": 50, "sinks": True}, {"soft_cap": 5.0}, {"window": 1, "soft_cap": 5.0}, {"window": 200}
    groups, kv_heads, blocks = drawn(*range(1, 17)), drawn(1, 2), drawn(64, 128)
    columns = zip(
        shapes, drawn(*options), groups, kv_heads, blocks, drawn(1, 2, 3), drawn(1, 64, 256), strict=True
    )  # fmt: skip
    cases = []
    for (head_dim, page_size, stored), option, group, kv_heads, block_kv, stages, min_tokens in columns:
        shape = {"head_dim": head_dim, "page_size": page_size, "stored": stored, "group": group}
        q, k, v, *_ = abstract(head_dim, page_size, group, queries=1 if decoding else 128, stored=stored)
        config = HopperConfig(block_kv=block_kv, stages=stages, thread_blocks=4, min_tokens=min_tokens)
        if not fits(q, k, v, config):
            config = HopperConfig(block_kv=64, stages=1, thread_blocks=4, min_tokens=min_tokens)
        cases.append(shape | option | {"kv_heads": kv_heads, "config": config})
    return cases


def fits(q, k, v, config):
    try:
        return bool(limits(q, k, v, config))
    except ValueError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("case", grid(decoding=True), ids=str)
def test_decoding_equals_the_reference_at_every_shape(case):
    check_decode(**case)


#: Starts and counts of blocks, and the queries that there is room for.
BLOCKS = [
    ([0, 247, 500], [64, 81, 1], 128),
    ([0, 128, 256], [128, 128, 70], 128),
    ([330, 0, 3], [192, 0, 129], 192),
    ([65, 400], [64, 3], 64),
    ([31, 190], [100, 99], 100),
]


@pytest.mark.slow
@pytest.mark.parametrize(("blocks", "case"), list(zip(itertools.cycle(BLOCKS), grid(decoding=False))), ids=str)
def test_prefill_equals_the_reference_at_every_shape(blocks, case):
    starts, counts, queries = blocks
    check(starts, counts, queries=queries, **case)


@pytest.mark.parametrize(
    "config",
    [
        HopperConfig(stages=1, thread_blocks=1),
        HopperConfig(block_kv=128, stages=2, thread_blocks=7, min_tokens=1),
    ],
    ids=str,
)
def test_pieces_and_stages_of_every_size(config):
    """Rings that go round, sequences in one piece and in many, steps with a page too many."""
    lengths = [700, 0, 129, 64, 16]
    check_decode(lengths, head_dim=64, page_size=16, group=2, window=300 if config.stages == 1 else None, config=config)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("lengths", [[0], [1], [131072], [0, 0, 0], [131072, 1, 0, 1], [64, 65, 4096] * 20])
def test_pieces_cover_each_page_once(lengths, window):
    page_size, config = 16, HopperConfig()
    cut = partial(plan, page_size=page_size, kv_heads=8, window=window, tokens=64, config=config)
    ends, work = jax.jit(cut)(jnp.array(lengths, jnp.int32))
    assert len(work) == len(lengths) + config.thread_blocks // 8
    per_step = 64 // page_size
    covered = [[] for _ in lengths]
    for piece, (row, first, steps, length) in enumerate(work.tolist()):
        assert length == lengths[row] and steps >= 0
        assert steps == 0 or (ends[row - 1] if row else 0) <= piece < ends[row]
        covered[row] += range(first, first + steps * per_step)
    for length, pages in zip(lengths, covered, strict=True):
        first = 0 if window is None else max(length - window, 0) // page_size
        needed = -(-length // page_size) - first
        assert sorted(pages) == list(range(first, first + -(-needed // per_step) * per_step))
    steps = np.asarray(work[:, 2])
    even = -(-steps.sum() // (config.thread_blocks // 8))
    assert steps.max() <= max(even, config.min_tokens // 64)


def lower(arrays, **options):
    pages, scales = arrays[1], {}
    if pages.dtype in (INT8, FP8):
        scales = {name: jax.ShapeDtypeStruct(pages.shape[:3], jnp.float32) for name in ("k_scales", "v_scales")}

    def attend(*arrays, **scales):
        return paged_attention(*arrays, scale=0.1, **scales, **options)

    return jax.jit(attend).trace(*arrays, **scales).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("stored", [None, *(pytest.param(each, marks=pytest.mark.slow) for each in (INT8, FP8))])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_every_head_dim_lowers_for_cuda(head_dim, stored):
    """What runs when no config is given."""
    everything = {"window": 100, "soft_cap": 30.0, "sinks": jnp.zeros(64)}
    for queries in (1, 128):
        arrays = abstract(head_dim, 16, 16, queries=queries, stored=stored)
        assert "mosaic_gpu" in lower(arrays, implementation="hopper", **everything)


@pytest.mark.slow
@pytest.mark.parametrize("stored", [None, INT8, FP8])
@pytest.mark.parametrize("page_size", [16, 32, 64])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_every_variant_lowers_for_cuda(head_dim, page_size, stored):
    groups = itertools.cycle((1, 8, 9, 16))
    for queries, block_kv, window, soft_cap in itertools.product((1, 128), (64, 128), (None, 100), (None, 30.0)):
        arrays = abstract(head_dim, page_size, next(groups), queries=queries, stored=stored)
        config = HopperConfig(block_kv=block_kv, stages=1)
        if not fits(*arrays[:3], config):
            assert block_kv == 128 and head_dim == 256
            continue
        sinks = None if soft_cap is None else jnp.zeros(arrays[0].shape[2])
        options = {"window": window, "soft_cap": soft_cap, "sinks": sinks, "config": config}
        assert "mosaic_gpu" in lower(arrays, implementation="hopper", **options)


@pytest.mark.parametrize(
    ("arrays", "config", "message"),
    [
        (abstract(96, 16, 4), None, "head dims 64, 128 and 256, not 96"),
        (abstract(64, 8, 4), None, "pages of 16, 32 and 64 tokens, not 8"),
        (abstract(64, 16, 17), None, "1 to 16 query heads a kv head, not 68 for 4"),
        (abstract(64, 16, 4, dtype=jnp.float32), None, "queries of bfloat16, not float32"),
        (abstract(64, 16, 4, dtype=jnp.float8_e4m3fn), None, "queries of bfloat16, not float8_e4m3fn"),
        (abstract(256, 16, 4), HopperConfig(stages=3), "shared memory holds 2 stages of 64 tokens, not 3"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused_by_name(arrays, config, message):
    with pytest.raises(ValueError, match=message):
        lower(arrays, implementation="hopper", config=config)


@pytest.mark.parametrize(
    ("shape", "tokens", "stages"),
    [
        ({"head_dim": 64}, 64, 4),
        ({"head_dim": 128}, 64, 2),
        ({"head_dim": 128, "stored": FP8}, 64, 3),
        ({"head_dim": 128, "queries": 128}, 128, 2),
        ({"head_dim": 128, "queries": 128, "stored": FP8}, 64, 3),
        ({"head_dim": 256, "queries": 128, "stored": FP8}, 64, 1),
    ],
    ids=str,
)
def test_sizes_follow_from_shared_memory(shape, tokens, stages):
    assert limits(*abstract(page_size=16, group=4, **shape)[:3]) == (tokens, stages)


@pytest.mark.parametrize("option", [{"block_kv": 96}, {"stages": 0}, {"thread_blocks": 0}, {"min_tokens": 0}])
def test_impossible_configs_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        HopperConfig(**option)


def test_unknown_implementations_are_refused():
    with pytest.raises(ValueError, match="auto, xla, hopper, native, not 'triton'"):
        lower(abstract(64, 16, 4), implementation="triton")


def test_a_cpu_takes_xla():
    choice = choose_implementation(*abstract(64, 16, 4)[:3])
    assert choice.implementation == "xla" and "device is a cpu" in choice.reason
    assert "mosaic_gpu" not in lower(abstract(64, 16, 4))


@pytest.mark.parametrize(
    ("capability", "arrays", "implementation", "reason"),
    [
        ("9.0", abstract(64, 16, 4), "hopper", "compute capability 9.0"),
        ("8.0", abstract(64, 16, 4), "xla", "compute capability 8.0"),
        ("10.0", abstract(64, 16, 4), "xla", "compute capability 10.0"),
        ("9.0", abstract(96, 16, 4), "xla", "not 96"),
        ("9.0", abstract(64, 16, 4, queries=128), "hopper", "compute capability 9.0"),
        ("9.0", abstract(64, 16, 4, stored=INT8), "hopper", "compute capability 9.0"),
    ],
)
def test_only_hopper_gpus_take_the_kernel(monkeypatch, capability, arrays, implementation, reason):
    gpu = SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda backend=None: [gpu])
    choice = choose_implementation(*arrays[:3])
    assert choice.implementation == implementation and reason in choice.reason


@pytest.mark.parametrize(("capability", "taken"), [("9.0", True), ("8.0", False)])
def test_what_is_chosen_is_what_is_compiled(monkeypatch, capability, taken):
    gpu = SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda backend=None: [gpu])
    assert ("mosaic_gpu" in lower(abstract(64, 64, 4, stored=INT8))) == taken


def test_a_program_for_the_cpu_takes_xla_beside_a_hopper_gpu(monkeypatch):
    gpu = SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(jax, "devices", lambda backend=None: [gpu])
    attend = partial(paged_attention, scale=0.1)
    text = jax.jit(attend).trace(*abstract(64, 16, 4)).lower(lowering_platforms=("cpu",)).as_text()
    assert "mosaic_gpu" not in text
