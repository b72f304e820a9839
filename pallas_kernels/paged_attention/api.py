"""The public operation: choose an implementation for the shapes and the hardware at hand."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.hardware import Choice, default_device, hopper_refusal
from pallas_kernels.kv_write.pages import LARGEST, has_scales
from pallas_kernels.paged_attention import native, reference
from pallas_kernels.paged_attention.config import HopperConfig

__all__ = ["Choice", "Implementation", "choose_implementation", "paged_attention"]

Implementation = Literal["auto", "xla", "hopper", "native"]


def paged_attention(
    q: Float[Array, "B Q N H"],
    k_pages: Float[Array, "P K S H"],
    v_pages: Float[Array, "P K S H"],
    tables: Int[Array, "B W"],
    starts: Int[Array, "B"],
    counts: Int[Array, "B"],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, "N"] | None = None,
    k_scales: Float[Array, "P K S"] | None = None,
    v_scales: Float[Array, "P K S"] | None = None,
    implementation: Implementation = "auto",
    config: HopperConfig | None = None,
) -> Float[Array, "B Q N H"]:
    """Causal attention of blocks of queries over the pages of their sequences.

    A block holds ``counts[b]`` queries of one sequence, at positions ``starts[b]``, ``starts[b] + 1``, ...;
    the keys and values of these positions are in the pages already. Decoding is the case Q = 1.

    Arguments:
      q: queries, rotated; rows past ``counts[b]`` are ignored.
      k_pages, v_pages: the cache of one layer, in a floating type of 16 or 32 bits, in int8 or in float8_e4m3fn.
      tables: page numbers of each block's sequence, in order; entries past its length are never attended to.
      starts: position of each block's first query.
      counts: valid queries of each block; 0 marks an unused block.
      scale: multiplies the logits, usually ``H ** -0.5``.
      window: attend to this many latest positions only, the query's own included.
      soft_cap: logits become ``soft_cap * tanh(logits / soft_cap)`` (Gemma 2, arXiv 2408.00118).
      sinks: a logit for each head that takes part in the softmax and has no value (attention sinks).
      k_scales, v_scales: float32; what to multiply each token's keys and values by. For int8 and float8_e4m3fn only.
      implementation: "xla" runs everywhere, "hopper" is for SM90 GPUs, "native" decodes in C++ on CPUs where
        :func:`pallas_kernels.native.load` has succeeded and leaves prefill to XLA. "auto" is what
        :func:`choose_implementation` says, and "xla" in programs that are compiled for another platform.
      config: block sizes of the Hopper kernels; None takes the defaults.

    Returns:
      As ``q``; rows past ``counts[b]`` are finite and meaningless.

    Raises:
      ValueError: the query heads do not divide into groups, the cache and its scales do not go together, or "hopper"
        was asked for and does not do these shapes.
    """
    n_heads, kv_heads = q.shape[2], k_pages.shape[1]
    if n_heads % kv_heads:
        raise ValueError(f"{n_heads} query heads do not divide into groups for {kv_heads} kv heads")
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation must be one of {', '.join(get_args(Implementation))}, not {implementation!r}")
    _check_scales(k_pages, v_pages, k_scales, v_scales)
    options: dict[str, Any] = {
        "scale": scale, "window": window, "soft_cap": soft_cap, "sinks": sinks,
        "k_scales": k_scales, "v_scales": v_scales,
    }  # fmt: skip
    arrays: tuple[Any, ...] = (q, k_pages, v_pages, tables, starts, counts)
    xla = partial(reference.decode if q.shape[1] == 1 else reference.prefill, **options)
    if implementation == "native" and q.shape[1] == 1:
        return native.decode(*arrays, **options)
    if implementation in ("xla", "native"):
        return xla(*arrays)
    if implementation == "auto" and choose_implementation(q, k_pages, v_pages, config=config).implementation == "xla":
        return xla(*arrays)

    # importing Mosaic takes time that the XLA path need not spend
    from pallas_kernels.paged_attention import hopper_decode, hopper_prefill

    hopper = hopper_decode.decode if q.shape[1] == 1 else hopper_prefill.prefill
    kernel = partial(hopper, config=config, **options)
    if implementation == "hopper":
        return kernel(*arrays)
    # the default device says what a program will probably run on; this says what it is compiled for
    return lax.platform_dependent(*arrays, cuda=kernel, default=xla)


def _check_scales(k_pages: Any, v_pages: Any, k_scales: Any, v_scales: Any) -> None:
    for name, pages, scales in (("k", k_pages, k_scales), ("v", v_pages, v_scales)):
        scaled = has_scales(pages.dtype)
        if scaled and scales is None:
            raise ValueError(f"{name}_pages of {pages.dtype} need {name}_scales")
        if scales is None:
            continue
        if not scaled:
            types = " or ".join(map(str, LARGEST))
            raise ValueError(f"{name}_scales go with {name}_pages of {types}, not of {pages.dtype}")
        if scales.shape != pages.shape[:3] or scales.dtype != jnp.float32:
            expected = f"float32 of shape {tuple(pages.shape[:3])}"
            raise ValueError(f"{name}_scales must be {expected}, not {scales.dtype} of shape {tuple(scales.shape)}")


def choose_implementation(
    q: Any, k_pages: Any, v_pages: Any, *, config: HopperConfig | None = None, device: Any = None
) -> Choice:
    """What to run for arrays of these shapes and types, and why.

    Arguments:
      q, k_pages, v_pages: as for :func:`paged_attention`; only their shapes and types are looked at.
      device: a ``jax.Device``; None is the default device, as for ``implementation="auto"``.
    """
    if (refusal := hopper_refusal(device or default_device())) is not None:
        return Choice("xla", refusal)

    from pallas_kernels.paged_attention import hopper

    try:
        hopper.check(q, k_pages, v_pages, config)
    except ValueError as error:
        return Choice("xla", str(error))
    return Choice("hopper", "the GPU has compute capability 9.0 (Hopper), and the kernels do these shapes")
