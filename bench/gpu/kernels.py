"""Kernels: each case is checked against its reference on fresh inputs, then timed."""

import contextlib
import importlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from bench.gpu.operations import ATTENTION_PEERS
from bench.gpu.timing import time_program
from pallas_kernels.benchmarking import Case

#: Sets of inputs: so many that the device's cache holds none from call to call, and that one program runs about this
#: long where memory moves 4 TB/s and matrices multiply at 800 TFLOP/s.
SETS_BYTES, SETS_SECONDS, MOST_SETS = 512 << 20, 1e-3, 32
#: What is timed beside the kernel gets by with fewer: XLA takes its time to compile many of them.
OTHERS_SETS = 4
#: Memory that the sets may take.
MEMORY = 8 << 30


def cases(operation: str, *, tiny: bool) -> Iterator[Case]:
    """What ``bench.py`` of an operation, or the module on others' attention, has to offer."""
    if operation == ATTENTION_PEERS:
        from bench.gpu import attention_peers

        yield from attention_peers.cases(tiny=tiny)
    else:
        yield from importlib.import_module(f"pallas_kernels.{operation}.bench").cases(tiny=tiny)


def measure(case: Case, add: Callable[..., None], *, tiny: bool) -> None:
    """Check and time one case; ``add`` is told of each figure."""
    seed = time.time_ns() % 2**32
    add(seed=seed, bytes_moved=case.bytes_moved, flops=case.flops)
    interpreted = plgpu.force_gpu_interpret_mode if tiny else contextlib.nullcontext
    key, make = jax.random.key(seed), jax.jit(case.inputs)
    first = make(key)
    with interpreted():
        add(**check(case, first))
        count = _sets(case, sum(array.nbytes for array in first), tiny=tiny)
        sets = [first, *(make(jax.random.fold_in(key, index)) for index in range(1, count))]
        del first
        limits: dict[str, Any] = {"warm_ups": 1, "rounds": 1, "most": 1} if tiny else {}
        functions = {"": case.kernel}
        if case.reference_is_timed:
            functions["reference_"] = case.reference
        functions |= {f"{name} ": peer for name, peer in case.peers.items()}
        for prefix, function in functions.items():
            # the interpreter knows one kernel at a time, and XLA:CPU would run two at once
            chosen = sets[:OTHERS_SETS] if prefix else sets[:1] if tiny else sets
            try:
                timing = time_program(_program(function, chosen, case.donated), len(chosen), **limits)
            except Exception as error:
                if not prefix:
                    raise
                add(**{f"{prefix}error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
            else:
                add(**{f"{prefix}{name}": value for name, value in timing.figures().items()})


def _program(
    function: Callable[..., Any], sets: list[tuple[jax.Array, ...]], donated: int
) -> Callable[[], Any]:
    """One compiled program that calls the function on every set; what it donates goes from call to call.

    The function is traced once, and different sets keep the compiler from merging the calls.
    """
    one = jax.jit(function)
    if not donated:
        many = jax.jit(lambda sets: [one(*arrays) for arrays in sets])
        return lambda: many(sets)

    def step(given: list[Any], kept: list[Any]) -> list[Any]:
        outs = [one(*some, *rest) for some, rest in zip(given, kept)]
        return [out if isinstance(out, tuple) else (out,) for out in outs]

    many = jax.jit(step, donate_argnums=0)
    # copies: another function is timed on the same sets afterwards
    state = [tuple(jnp.copy(array) for array in arrays[:donated]) for arrays in sets]
    kept = [arrays[donated:] for arrays in sets]

    def run() -> Any:
        nonlocal state
        state = many(state, kept)
        return state

    return run


def _sets(case: Case, size: int, *, tiny: bool) -> int:
    if tiny:
        return 2
    floor = max(case.bytes_moved / 4e12, case.flops / 8e14)
    wanted = max(math.ceil(SETS_BYTES / size), math.ceil(SETS_SECONDS / floor), 2)
    return max(1, min(wanted, MOST_SETS, MEMORY // size))


def check(case: Case, arrays: tuple[jax.Array, ...]) -> dict[str, Any]:
    """Errors of the kernel on these inputs; ``status`` is "wrong" where one is over the case's tolerance."""
    kernel, reference = jax.jit(case.kernel), jax.jit(case.reference)
    with jax.default_matmul_precision("highest"):
        expected = case.checked(jax.block_until_ready(reference(*arrays)))
    _poison(jax.eval_shape(kernel, *arrays))
    output = jax.block_until_ready(kernel(*arrays))
    figures: dict[str, Any] = {"error_to_reference": difference(case.checked(output), expected, case.tolerance == 0)}
    wrong = not figures["error_to_reference"] <= case.tolerance
    if case.spot_check is not None:
        on_host = jax.tree.map(np.asarray, (output, arrays))
        figures["error_to_float64"] = float(case.spot_check(on_host[0], *on_host[1]))
        wrong |= not figures["error_to_float64"] <= case.tolerance
    if wrong:
        figures["status"] = "wrong"
    # JSON has no NaN
    return {name: value if value == value else "NaN" for name, value in figures.items()}


def _poison(shapes: Any) -> None:
    """Fill memory of the outputs' sizes with NaN and free it: an output that is not written shows it.

    The allocator gives out what was freed last, but need not.
    """
    filled = [
        jnp.full(shape.shape, jnp.nan if jnp.issubdtype(shape.dtype, jnp.floating) else 101, shape.dtype)
        for shape in jax.tree.leaves(shapes)
        for _ in range(2)
    ]
    jax.block_until_ready(filled)


def difference(output: Any, expected: Any, exactly: bool) -> float:
    """``norm(output - expected) / norm(expected)``, summed in float64; or the share of elements with other bits."""
    pairs = list(zip(jax.tree.leaves(output), jax.tree.leaves(expected), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        raise ValueError(f"shapes differ: {[(a.shape, b.shape) for a, b in pairs]}")
    if exactly:
        if any(a.dtype != b.dtype for a, b in pairs):
            raise ValueError(f"types differ: {[(str(a.dtype), str(b.dtype)) for a, b in pairs]}")
        return sum(int(_unequal(a, b)) for a, b in pairs) / sum(a.size for a, _ in pairs)
    sums = [[np.asarray(part, np.float64).sum() for part in _squares(a, b)] for a, b in pairs]
    return math.sqrt(sum(wrong for wrong, _ in sums)) / max(math.sqrt(sum(right for _, right in sums)), 1e-300)


@jax.jit
def _unequal(a: jax.Array, b: jax.Array) -> jax.Array:
    bits = jnp.dtype(f"uint{8 * a.dtype.itemsize}")
    return jnp.sum(lax.bitcast_convert_type(a, bits) != lax.bitcast_convert_type(b, bits))


@jax.jit
def _squares(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums over the last axis, short enough for float32; the host adds them up in float64."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.square(a - b).sum(-1), jnp.square(b).sum(-1)
