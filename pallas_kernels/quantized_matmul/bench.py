"""Cases for ``python -m bench.gpu``: the matrices of llama-3.1-8b, for decoding and for prefill."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.benchmarking import Case
from pallas_kernels.quantized_matmul.api import quantized_matmul
from pallas_kernels.quantized_matmul.config import HopperConfig
from pallas_kernels.quantized_matmul.hopper import FEW_ROWS
from pallas_kernels.quantized_matmul.weight import STORAGE, Method, QuantizedWeight

__all__ = ["cases"]

#: Output and input channels.
MATRICES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}

#: Rows of ``x``: decoding, then chunks of prompts.
ROWS = (8, 1, 16, 512, 2048)

#: Output channels that the spot check looks at.
CHECKED = 32


def cases(*, tiny: bool = False) -> Iterator[Case]:
    """int8 and int4 for each matrix, float8 and small groups for some; ``tiny`` has one for each form of a kernel."""
    if tiny:
        for rows, block_k in ((3, 128), (70, 64)):
            config = HopperConfig(block_k=block_k, stages=2, splits=2, block_t=64, operand="shared")
            yield _case("tiny", (128, 256), rows, "int8", None, config)
            yield _case("tiny", (128, 256), rows, "int4", 32, config)
        return
    for rows in ROWS:
        for matrix, shape in MATRICES.items():
            yield _case(matrix, shape, rows, "int8", None)
            yield _case(matrix, shape, rows, "int4", 128)
    for rows in (8, 512):
        for matrix in ("o", "gate_up"):
            yield _case(matrix, MATRICES[matrix], rows, "int4", 32)
            yield _case(matrix, MATRICES[matrix], rows, "fp8", None)


def _case(
    matrix: str,
    shape: tuple[int, int],
    rows: int,
    method: Method,
    group: int | None,
    config: HopperConfig | None = None,
) -> Case:
    def multiply(x: jax.Array, values: jax.Array, scales: jax.Array, **options: Any) -> jax.Array:
        return quantized_matmul(x, QuantizedWeight(values, scales), **options)

    def reference(x: jax.Array, values: jax.Array, scales: jax.Array) -> jax.Array:
        return multiply(x.astype(jnp.float32), values, scales, implementation="xla")

    outputs, inputs = shape
    values, scales = _stored(shape, method, group)
    return Case(
        name=f"{matrix} {rows}x{outputs}x{inputs} {method}" + ("" if group is None else f" groups of {group}"),
        inputs=jax.jit(partial(_inputs, shape, rows, method, group)),
        kernel=partial(multiply, implementation="hopper", config=config),
        reference=reference,
        bytes_moved=QuantizedWeight(values, scales).nbytes + 2 * rows * (inputs + outputs),
        flops=0 if rows <= FEW_ROWS else 2 * rows * inputs * outputs,
        tolerance=5e-3,  # what rounding the result to bfloat16 costs, and the weights of groups once more
        spot_check=_spot_check,
        peers={"xla": partial(multiply, implementation="xla")},
        reference_is_timed=False,
    )


def _inputs(
    shape: tuple[int, int], rows: int, method: Method, group: int | None, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Fresh activations, stored values and scales."""
    stored, scaled = _stored(shape, method, group)
    largest = STORAGE[method][1]
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (rows, shape[1]), jnp.bfloat16)
    values = jax.random.uniform(keys[1], shape, minval=-largest, maxval=largest)
    values = values if method == "fp8" else jnp.round(values)
    scales = jax.random.uniform(keys[2], scaled.shape, minval=0.5, maxval=1.5) / largest
    return x, values.astype(stored.dtype), scales.astype(scaled.dtype)


def _stored(shape: tuple[int, int], method: Method, group: int | None) -> tuple[Any, Any]:
    """Shape and type of values and scales; those of groups in bfloat16."""
    scales = (1, shape[0]) if group is None else (shape[1] // group, shape[0])
    return (
        jax.ShapeDtypeStruct(shape, STORAGE[method][0]),
        jax.ShapeDtypeStruct(scales, jnp.float32 if group is None else jnp.bfloat16),
    )


def _spot_check(output: np.ndarray, x: np.ndarray, values: np.ndarray, scales: np.ndarray) -> float:
    """Relative error of some output channels, the first and the last among them."""
    chosen = np.linspace(0, len(values) - 1, CHECKED).astype(int)
    weights = values[chosen].astype(np.float64) * np.repeat(
        scales[:, chosen].astype(np.float64).T, values.shape[1] // len(scales), axis=1
    )
    expected = x.astype(np.float64) @ weights.T
    difference = output[:, chosen].astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))
