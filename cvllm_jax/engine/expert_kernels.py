"""The choice and the trial of the kernel for mixtures of experts; see :mod:`cvllm_jax.engine.kernels`."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul import choose_implementation, grouped_matmul
from pallas_kernels.hardware import Choice

__all__ = ["ExpertGeometry", "choose_for_experts", "multiply_by_expert"]

#: Experts in the trial: few, because their matrices are made beside those of the model.
TRIAL_EXPERTS = 4


class ExpertGeometry(NamedTuple):
    """Sizes of a mixture of experts."""

    width: int
    experts: int
    hidden: int
    chosen: int
    quantized: bool = False
    """Whether matrices are in few bits."""

    @property
    def matrices(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Output and input channels of both products."""
        return (2 * self.hidden, self.width), (self.width, self.hidden)


def choose_for_experts(geometry: ExpertGeometry, dtype: Any, device: Any) -> Choice:
    """The implementation that does both products of an expert."""
    if geometry.quantized:
        return Choice("xla", "there is no kernel for quantized experts yet")
    choices = []
    for outputs, inputs in geometry.matrices:
        rows = jax.ShapeDtypeStruct((geometry.chosen, inputs), dtype)
        weights = jax.ShapeDtypeStruct((geometry.experts, outputs, inputs), dtype)
        choices.append(choose_implementation(rows, weights, device=device))
    return next((choice for choice in choices if choice.implementation == "xla"), choices[0])


def multiply_by_expert(implementation: Any, geometry: ExpertGeometry, dtype: Any) -> Any:
    """Few rows and many through both products of experts, one of which has no rows."""

    @jax.jit
    def multiply(key: jax.Array) -> list[jax.Array]:
        products = []
        for outputs, inputs in geometry.matrices:
            for rows in (3, 200):
                keys = jax.random.split(jax.random.fold_in(key, rows), 3)
                x = jax.random.normal(keys[0], (rows, inputs), dtype)
                weights = jax.random.normal(keys[1], (TRIAL_EXPERTS, outputs, inputs), dtype)
                experts = jax.random.randint(keys[2], (rows - 1,), 1, TRIAL_EXPERTS)  # the last row has none
                sizes = jnp.zeros(TRIAL_EXPERTS, jnp.int32).at[experts].add(1)
                products.append(grouped_matmul(x, weights, sizes, implementation=implementation))
        return products

    return multiply(jax.random.key(9))
