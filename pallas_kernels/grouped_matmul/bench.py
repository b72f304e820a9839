"""Cases for ``python -m bench.gpu``: the experts of qwen3-30b-a3b and of mixtral-8x7b, for decoding and for prefill."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.benchmarking import Case
from pallas_kernels.grouped_matmul.api import grouped_matmul

__all__ = ["cases"]

#: Experts, output and input channels, experts of a token.
MATRICES = {
    "qwen3-30b-a3b gate_up": (128, 1536, 2048, 8),
    "qwen3-30b-a3b down": (128, 2048, 768, 8),
    "mixtral-8x7b down": (8, 4096, 14336, 2),
}

TOKENS = (64, 1, 8, 2048)

TINY = {"two warpgroups": (4, 128, 128, 2), "one warpgroup": (4, 192, 64, 2)}

#: Output channels that the spot check looks at.
CHECKED = 32

#: Rows up to which ``jax.lax.ragged_dot_general`` is timed beside: it multiplies every row with every expert.
RAGGED = 512


def cases(*, tiny: bool = False) -> Iterator[Case]:
    """Each matrix for some numbers of tokens, which take random experts."""
    for tokens in (3,) if tiny else TOKENS:
        for name, shape in (TINY if tiny else MATRICES).items():
            yield _case(name, shape, tokens)


def _case(name: str, shape: tuple[int, int, int, int], tokens: int) -> Case:
    experts, outputs, inputs, chosen = shape
    rows = tokens * chosen
    # every set of inputs has these groups in another order, so that all have equally many weights to read
    sizes = np.random.default_rng(0).multinomial(rows, np.full(experts, 1 / experts)).astype(np.int32)
    weights = int((sizes > 0).sum()) * outputs * inputs
    return Case(
        name=f"{name} {tokens} tokens {rows}x{outputs}x{inputs}",
        inputs=jax.jit(partial(_inputs, shape, sizes)),
        kernel=partial(grouped_matmul, implementation="hopper"),
        reference=partial(grouped_matmul, implementation="xla"),
        bytes_moved=2 * (weights + rows * (inputs + outputs)),
        flops=2 * rows * inputs * outputs,
        tolerance=5e-3,  # what rounding the result to bfloat16 costs
        spot_check=_error,
        peers={"ragged_dot": _ragged_dot} if rows <= RAGGED else {},
    )


def _inputs(shape: tuple[int, int, int, int], sizes: np.ndarray, key: jax.Array) -> tuple[jax.Array, ...]:
    experts, outputs, inputs, _ = shape
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (int(sizes.sum()), inputs), jnp.bfloat16)
    weights = jax.random.normal(keys[1], (experts, outputs, inputs), jnp.bfloat16)
    return x, weights, jax.random.permutation(keys[2], jnp.asarray(sizes))


def _ragged_dot(
    x: Float[Array, "T I"], weights: Float[Array, "E O I"], group_sizes: Int[Array, "E"]
) -> Float[Array, "T O"]:
    dimensions = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
    )
    return lax.ragged_dot_general(x, weights, group_sizes, dimensions)


def _error(output: Any, x: Any, weights: Any, group_sizes: Any) -> float:
    """Norm of the error of some output channels over the norm of what is right."""
    some = weights[:, :CHECKED].astype(np.float64)
    ends = np.cumsum(group_sizes)
    right = np.concatenate(
        [
            x[end - size : end].astype(np.float64) @ matrix.T
            for size, end, matrix in zip(group_sizes, ends, some, strict=True)
        ]
    )
    return float(np.linalg.norm(output[:, :CHECKED].astype(np.float64) - right) / np.linalg.norm(right))
