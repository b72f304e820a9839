"""The public operation: choose an implementation for the shapes and the hardware at hand."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul import reference
from pallas_kernels.grouped_matmul.config import HopperConfig
from pallas_kernels.hardware import Choice, default_device, hopper_refusal
from pallas_kernels.quantized_matmul import QuantizedWeight

__all__ = ["Implementation", "choose_implementation", "grouped_matmul"]

Implementation = Literal["auto", "xla", "hopper"]


def grouped_matmul(
    x: Float[Array, "T I"],
    weights: Float[Array, "E O I"] | QuantizedWeight,
    group_sizes: Int[Array, "E"],
    *,
    implementation: Implementation = "auto",
    config: HopperConfig | None = None,
) -> Float[Array, "T O"]:
    """Multiply the rows of each expert with its matrix: ``x[t] @ weights[expert of t].T``, with float32 sums.

    A row of the result depends on the same row of ``x`` alone: what other rows hold, NaN too, stays there.

    Arguments:
      x: activations, sorted by expert.
      weights: a matrix ``[out, in]`` for each expert, of the type of ``x``, or a stack of quantised ones, of which XLA
        reads only those that have rows if they are in bytes
        (:func:`pallas_kernels.quantized_matmul.in_bytes`).
      group_sizes: rows of each expert, 0 or more, in order from row 0 on. Their sum is T or less.
      implementation: "xla" runs everywhere, "hopper" is for SM90 GPUs, "auto" is what
        :func:`choose_implementation` says, and "xla" in programs that are compiled for another platform.
      config: block sizes of the Hopper kernel; None takes defaults for the shape.

    Returns:
      In the type of ``x``; rows past the sum of ``group_sizes`` are 0.

    Raises:
      ValueError: the arrays do not fit together, or "hopper" was asked for and does not do these shapes.
    """
    shape: tuple[int, ...]
    if isinstance(weights, QuantizedWeight):
        dtype, shape = x.dtype, (*weights.values.shape[:-2], *weights.shape)
    else:
        dtype, shape = weights.dtype, weights.shape
    if len(shape) != 3 or shape[2] != x.shape[1] or group_sizes.shape != shape[:1] or dtype != x.dtype:
        raise ValueError(
            f"x {x.dtype}{list(x.shape)}, weights {dtype}{list(shape)} and group sizes "
            f"{list(group_sizes.shape)} are no rows [T, I], matrices [E, O, I] of one type and sizes [E]"
        )
    if implementation not in ("auto", "xla", "hopper"):
        raise ValueError(f'implementation must be "auto", "xla" or "hopper", not {implementation!r}')
    arrays: tuple[Any, ...] = (x, weights, group_sizes)
    if implementation == "xla":
        return reference.grouped_matmul(*arrays)
    if implementation == "auto" and choose_implementation(x, weights, config=config).implementation == "xla":
        return reference.grouped_matmul(*arrays)

    # importing Mosaic takes time that the XLA path need not spend
    from pallas_kernels.grouped_matmul import hopper

    kernel = partial(hopper.grouped_matmul, config=config)
    if implementation == "hopper":
        return kernel(*arrays)
    # the default device says what a program will probably run on; this says what it is compiled for
    return lax.platform_dependent(*arrays, cuda=kernel, default=reference.grouped_matmul)


def choose_implementation(x: Any, weights: Any, *, config: HopperConfig | None = None, device: Any = None) -> Choice:
    """What to run for arrays of these shapes and types, and why.

    Arguments:
      x, weights: as for :func:`grouped_matmul`; only their shapes and types are looked at.
      device: a ``jax.Device``; None is the default device, as for ``implementation="auto"``.
    """
    if (refusal := hopper_refusal(device or default_device())) is not None:
        return Choice("xla", refusal)

    from pallas_kernels.grouped_matmul import hopper

    try:
        hopper.check(x, weights, config)
    except ValueError as error:
        return Choice("xla", str(error))
    return Choice("hopper", "the GPU has compute capability 9.0 (Hopper), and the kernel does these shapes")
