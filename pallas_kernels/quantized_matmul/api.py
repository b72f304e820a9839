"""The public operation: choose an implementation for the shapes and the hardware at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.hardware import Choice, default_device, hopper_refusal
from pallas_kernels.quantized_matmul import cpu, native, reference
from pallas_kernels.quantized_matmul.config import HopperConfig
from pallas_kernels.quantized_matmul.cpu import offset_product
from pallas_kernels.quantized_matmul.weight import STORAGE, QuantizedWeight

__all__ = ["Choice", "Implementation", "choose_implementation", "quantized_matmul"]

Implementation = Literal["auto", "xla", "cpu", "hopper", "native"]


def quantized_matmul(
    x: Float[Array, "T I"],
    weight: QuantizedWeight,
    *,
    implementation: Implementation = "auto",
    config: HopperConfig | None = None,
    out_dtype: Any = None,
) -> Float[Array, "T O"]:
    """``x @ dequantize(weight).T`` with float32 sums.

    A row of the result depends on the same row of ``x`` alone: what padding rows hold, NaN too, stays there.
    Offsets are added behind whatever runs: they meet only the sums of the groups of ``x``, a small product.

    Arguments:
      x: activations; bfloat16 for the kernels, any float type for XLA.
      implementation: "xla" runs everywhere, "cpu" is what suits CPUs, "hopper" is for SM90 GPUs, "native" is C++ for
        CPUs where :func:`pallas_kernels.native.load` has succeeded, and "cpu" for weights that it does not do. "auto"
        is what :func:`choose_implementation` says for the platform that a program is compiled for, be it "cpu" or
        another.
      config: block sizes of the Hopper kernels; None takes defaults for the shape.
      out_dtype: type of the result, None for that of ``x``.

    Raises:
      ValueError: the arrays do not fit together, or "hopper" was asked for and does not do these shapes.
    """
    _check_shapes(x, weight)
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation must be one of {', '.join(get_args(Implementation))}, not {implementation!r}")
    if weight.offsets is not None and implementation == "hopper":
        # XLA's forms do them with the rest
        centred = replace(weight, offsets=None)
        y = quantized_matmul(x, centred, implementation=implementation, config=config, out_dtype=jnp.float32)
        return (y + offset_product(x, weight)).astype(x.dtype if out_dtype is None else out_dtype)
    on_cpu = native.matmul if native.does(x, weight) else cpu.matmul
    forms = {"xla": reference.matmul, "cpu": cpu.matmul, "native": on_cpu}
    if implementation in forms:
        return forms[implementation](x, weight, out_dtype=out_dtype)
    if implementation == "hopper":
        # importing Mosaic takes time that the XLA path need not spend
        from pallas_kernels.quantized_matmul import hopper

        return hopper.matmul(x, weight, config=config, out_dtype=out_dtype)
    by_platform: dict[str, Callable[..., Any]] = {
        "cpu": partial(cpu.matmul, out_dtype=out_dtype),
        "default": partial(reference.matmul, out_dtype=out_dtype),
    }
    if choose_implementation(x, weight, config=config).implementation == "hopper":
        by_platform["cuda"] = partial(quantized_matmul, implementation="hopper", config=config, out_dtype=out_dtype)
    # the default device says what a program will probably run on; this says what it is compiled for
    return lax.platform_dependent(x, weight, **by_platform)


def choose_implementation(
    x: Any, weight: QuantizedWeight, *, config: HopperConfig | None = None, device: Any = None
) -> Choice:
    """What to run for arrays of these shapes and types, and why.

    Arguments:
      x, weight: as for :func:`quantized_matmul`; only their shapes and types are looked at.
      device: a ``jax.Device``; None is the default device, as for ``implementation="auto"``.
    """
    if (refusal := hopper_refusal(device or default_device())) is not None:
        return Choice("xla", refusal)

    from pallas_kernels.quantized_matmul import hopper

    try:
        hopper.check(x, weight, config)
    except ValueError as error:
        return Choice("xla", str(error))
    return Choice("hopper", "the GPU has compute capability 9.0 (Hopper), and the kernels do these shapes")


def _check_shapes(x: Any, weight: QuantizedWeight) -> None:
    """Refuse arrays that do not fit together, whatever runs."""
    outputs, inputs = weight.shape
    types = [jnp.dtype(dtype) for dtype, _ in STORAGE.values()] if weight.bytes_of is None else [jnp.dtype(jnp.uint8)]
    if weight.values.dtype not in types:
        raise ValueError(f"weights are stored as {', '.join(map(str, types))}, not {weight.values.dtype}")
    if x.ndim != 2 or x.shape[1] != inputs:
        raise ValueError(f"rows of {inputs} input channels are needed, and x has shape {x.shape}")
    if weight.scales.ndim != 2 or weight.scales.shape[1] != outputs or inputs % weight.scales.shape[0]:
        raise ValueError(f"scales of shape {weight.scales.shape} are not [divisor of {inputs}, {outputs}]")
    if weight.offsets is not None and weight.offsets.shape != weight.scales.shape:
        raise ValueError(f"offsets of shape {weight.offsets.shape} do not fit scales of shape {weight.scales.shape}")
