"""Which implementation of each operation an engine runs, and why: the one place where it falls back to XLA."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cvllm_jax.config import KernelSet
from cvllm_jax.engine.expert_kernels import ExpertGeometry, choose_for_experts, multiply_by_expert
from cvllm_jax.engine.programs import environment_key
from cvllm_jax.errors import ConfigError
from cvllm_jax.models.layers import Kernels, WeightLayout
from pallas_kernels import kv_write, native, paged_attention, quantized_matmul
from pallas_kernels.hardware import Choice
from pallas_kernels.kv_write import KvPages, has_scales, rotate_and_write
from pallas_kernels.kv_write import native as native_kv_write
from pallas_kernels.paged_attention import native as native_attention
from pallas_kernels.quantized_matmul import native as native_matmul

__all__ = ["Geometry", "KernelChoices", "choose_kernels", "choose_matmul", "empty_pages"]

log = logging.getLogger("cvllm_jax.engine")

#: Largest relative difference between a kernel and its XLA form that is rounding, in norms; bf16 has 3 digits.
TOLERANCE = 2e-2

#: Trials that this process has seen passed.
_passed: set[str] = set()

NO_EXPERTS = Choice("xla", "the model has no experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What an implementation must cope with: shapes and types of attention, cache and experts."""

    heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: Any
    cache_dtype: Any
    rotary_dim: int | None = None
    """Dimensions of a head that are rotated; None for all."""
    experts: ExpertGeometry | None = None
    shares_values: bool = False
    """Whether values are a part of the keys and have no pages."""
    index_dim: int = 0
    """Numbers of an indexer's key, which are in these pages then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelChoices:
    """The implementation of each operation, with its reason."""

    attention: Choice
    kv_write: Choice
    experts: Choice = NO_EXPERTS

    @property
    def kernels(self) -> Kernels:
        experts = self.experts.implementation
        assert experts != "native"  # there is none
        return Kernels(self.attention.implementation, self.kv_write.implementation, experts)


def choose_kernels(
    geometry: Geometry, device: Any, wanted: KernelSet = "auto", *, store: Path | None = None, trial: bool = True
) -> KernelChoices:
    """Kernels where they run, XLA elsewhere: Pallas on Hopper GPUs, C++ on x86 CPUs.

    Before a kernel is used it must have given, on this device and for this geometry, what the XLA form gives: it is
    new to most hardware that it meets. A kernel that fails is not used, and the reason says so.

    Arguments:
      wanted: "xla" uses no kernel; "hopper" and "native" refuse to fall back.
      store: folder that remembers which trials were passed.
      trial: without it the choice is made from shapes and hardware alone.

    Raises:
      ConfigError: "hopper" or "native" was asked for, and a kernel does not do it.
    """
    if wanted == "xla":
        asked = Choice("xla", "asked for")
        return KernelChoices(attention=asked, kv_write=asked, experts=asked)
    q, qkv, rope, pages = jax.eval_shape(partial(_inputs, geometry, 1), jax.random.key(0))[:4]
    choices = {
        "attention": paged_attention.choose_implementation(q, pages.k, pages.v, device=device),
        "kv_write": kv_write.choose_implementation(qkv, rope, pages, device=device),
    }
    native_checks = {
        "attention": partial(native_attention.check, q, pages.k, pages.v),
        "kv_write": partial(native_kv_write.check, qkv, rope, pages),
    }
    choices = {name: _or_native(choices[name], native_checks[name], device, wanted, store) for name in choices}
    trials = {"attention": _attend, "kv_write": _write}
    if geometry.shares_values:
        choices = dict.fromkeys(trials, Choice("xla", "there is no kernel for latent attention yet"))
    if geometry.experts is not None:
        choices["experts"] = choose_for_experts(geometry.experts, geometry.dtype, device)
        trials["experts"] = _multiply_by_expert
    for name, run in trials.items():
        if trial and choices[name].implementation != "xla":
            choices[name] = _after_trial(name, choices[name], run, geometry, device, store)
        if not (name == "experts" and wanted == "native"):
            _check_wanted(name, wanted, choices[name])
    return KernelChoices(**choices)


def choose_matmul(
    layout: WeightLayout, dtype: Any, device: Any, wanted: KernelSet = "auto", *, store: Path | None = None
) -> Choice:
    """What multiplies with weights of a layout, by the same rules as :func:`choose_kernels`.

    "hopper" and "native" mean that the kernel is right on this device; matrices whose shapes it does not do are left
    to XLA.

    Raises:
      ConfigError: "hopper" or "native" was asked for, and the kernel does not do it.
    """
    if wanted == "xla":
        return Choice("xla", "asked for")
    case = (layout, jnp.dtype(dtype))
    x, weight = jax.eval_shape(partial(_matrix, case, 8), jax.random.key(0))
    choice = quantized_matmul.choose_implementation(x, weight, device=device)
    choice = _or_native(choice, partial(native_matmul.check, x, weight), device, wanted, store)
    if choice.implementation != "xla":
        choice = _after_trial("quantized weights", choice, _multiply, case, device, store)
    _check_wanted("quantized weights", wanted, choice)
    return choice


def _or_native(
    choice: Choice, check: Callable[[], None], device: Any, wanted: KernelSet, store: Path | None
) -> Choice:
    """On a CPU the kernels in C++, where a compiler makes them for this processor and they do these shapes."""
    if choice.implementation == "hopper" or device.platform != "cpu" or wanted == "hopper":
        return choice
    try:
        check()
    except ValueError as error:
        return Choice("xla", str(error))
    if (reason := native.load(None if store is None else store.parent / "native")) is not None:
        return Choice("xla", f"the kernels in C++ cannot be had: {reason}")
    return Choice("native", "the kernels in C++ are compiled for this processor, and do these shapes")


def _after_trial[Case](
    name: str, choice: Choice, run: Callable[[Any, Case], Any], case: Case, device: Any, store: Path | None
) -> Choice:
    if choice.implementation == "native":
        # no driver and no tile stands between these shapes and others: one trial tells what the compiler made
        failure = _tried(name, "native", *_NATIVE_TRIALS[name], device, store)
    else:
        failure = _tried(name, choice.implementation, run, case, device, store)
    if failure is None:
        return choice
    log.warning("the kernel for %s is not used: %s", name, failure)
    return Choice("xla", f"the kernel failed its trial on this device: {failure}")


def _check_wanted(name: str, wanted: KernelSet, choice: Choice) -> None:
    if wanted not in ("auto", choice.implementation):
        kind = {"hopper": "Hopper", "native": "native"}[wanted]
        raise ConfigError(f"the {kind} kernel for {name} cannot run: {choice.reason}", param="kernels")


def empty_pages(geometry: Geometry, num_pages: int, zeros: Callable[..., jax.Array] = jnp.zeros) -> KvPages:
    """The cache of one layer; ``zeros(shape, dtype)`` makes its arrays."""
    shape = (num_pages, geometry.kv_heads, geometry.page_size, geometry.head_dim)
    of_values = (*shape[:3], geometry.index_dim) if geometry.shares_values else shape
    k, v = zeros(shape, geometry.cache_dtype), zeros(of_values, geometry.cache_dtype)
    if not has_scales(geometry.cache_dtype):
        return KvPages(k, v)
    return KvPages(k, v, zeros(shape[:3], jnp.float32), zeros(shape[:3], jnp.float32))


def _tried[Case](
    name: str, implementation: str, run: Callable[[Any, Case], Any], geometry: Case, device: Any, store: Path | None
) -> str | None:
    """Why the kernel fails its trial, or None if it passes or has passed before."""
    key = f"{environment_key()} {device.device_kind} {name} {implementation} {geometry}"
    passed = None if store is None else store / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    if key in _passed or (passed is not None and passed.exists()):
        return None
    try:
        with jax.default_device(device):
            got, want = run(implementation, geometry), run("xla", geometry)
            errors = jax.tree.map(_relative_error, got, want)
            worst = max(float(error) for error in jax.tree.leaves(errors))
    except Exception as error:  # whatever a compiler, a driver or the device says: the model can run without the kernel
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    if not worst <= TOLERANCE:  # NaN too
        return f"it differs from the XLA form by {worst:.2g} in relative norm, and {TOLERANCE:g} is allowed"
    _passed.add(key)
    if passed is not None:
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()
    return None


def _relative_error(got: jax.Array, want: jax.Array) -> jax.Array:
    got, want = got.astype(jnp.float32), want.astype(jnp.float32)
    return jnp.linalg.norm(got - want) / jnp.maximum(jnp.linalg.norm(want), 1e-30)


def _attend(implementation: Any, geometry: Geometry, queries: tuple[int, ...] = (1, 64)) -> Any:
    """Decoding and prefill over two sequences, one of them longer than a page."""

    @jax.jit
    def attend(key: jax.Array) -> Any:
        out = []
        for count in queries:
            q, qkv, rope, pages, tables, starts = _inputs(geometry, count, key)
            page, offset = _places(geometry)
            _, pages = rotate_and_write(qkv, rope, pages, page, offset, implementation="xla")
            counts = jnp.full_like(starts, count)
            out.append(
                paged_attention.paged_attention(
                    q, pages.k, pages.v, tables, starts, counts, scale=geometry.head_dim**-0.5,
                    k_scales=pages.k_scales, v_scales=pages.v_scales, implementation=implementation,
                )
            )  # fmt: skip
        return out

    return attend(jax.random.key(7))


def _write(implementation: Any, geometry: Geometry) -> Any:
    """Rotate and write the tokens of two sequences."""

    @jax.jit
    def write(key: jax.Array) -> Any:
        _, qkv, rope, pages, *_ = _inputs(geometry, 1, key)
        q, pages = rotate_and_write(qkv, rope, pages, *_places(geometry), implementation=implementation)
        return q, jax.tree.map(lambda x: x.astype(jnp.float32), pages)

    return write(jax.random.key(8))


def _multiply(implementation: Any, case: tuple[WeightLayout, Any]) -> Any:
    """Few rows and many."""

    @jax.jit
    def multiply(key: jax.Array) -> Any:
        return [
            quantized_matmul.quantized_matmul(*_matrix(case, rows, key), implementation=implementation)
            for rows in (8, 128)
        ]

    return multiply(jax.random.key(9))


def _matrix(case: tuple[WeightLayout, Any], rows: int, key: jax.Array) -> tuple[jax.Array, Any]:
    """Activations, and a weight of 256 output channels in a layout."""
    layout, dtype = case
    (shape, _), (_, scale_dtype) = layout.arrays(256, 512)
    parts = jax.random.split(key, 3)
    weight = quantized_matmul.quantize(
        jax.random.normal(parts[0], shape), layout.method, layout.group_size, scale_dtype=scale_dtype
    )
    if layout.offsets:
        weight = replace(weight, offsets=jax.random.normal(parts[1], weight.scales.shape, scale_dtype))
    return jax.random.normal(parts[2], (rows, shape[1]), dtype), weight


def _multiply_by_expert(implementation: Any, geometry: Geometry) -> Any:
    assert geometry.experts is not None
    return multiply_by_expert(implementation, geometry.experts, geometry.dtype)


_NATIVE_GEOMETRY = Geometry(
    heads=6, kv_heads=2, head_dim=64, page_size=16, dtype=jnp.bfloat16, cache_dtype=jnp.bfloat16
)  # fmt: skip
_NATIVE_TRIALS: dict[str, tuple[Callable[..., Any], Any]] = {
    "attention": (partial(_attend, queries=(1,)), _NATIVE_GEOMETRY),
    "kv_write": (_write, _NATIVE_GEOMETRY),
    "quantized weights": (_multiply, (WeightLayout(method="int8"), jnp.bfloat16)),
}

#: Pages of each of the trial's two sequences.
TRIAL_PAGES = 5


def _inputs(g: Geometry, queries: int, key: jax.Array) -> tuple[Any, ...]:
    """Queries, new tokens, their rotation, empty pages, block tables, and where the queries start."""
    tokens = 2 * TRIAL_PAGES * g.page_size
    parts = jax.random.split(key, 3)
    q = jax.random.normal(parts[0], (2, queries, g.heads, g.head_dim), g.dtype)
    qkv = jax.random.normal(parts[1], (tokens, g.heads + 2 * g.kv_heads, g.head_dim), g.dtype)
    angles = jax.random.uniform(parts[2], (tokens, 1, (g.rotary_dim or g.head_dim) // 2), jnp.float32, 0, 6)
    pages = empty_pages(g, 1 + 2 * TRIAL_PAGES)
    tables = 1 + jnp.arange(2 * TRIAL_PAGES, dtype=jnp.int32).reshape(2, -1)
    # with one query the sequences end at different places; with more, a block lies across pages
    starts = jnp.asarray([g.page_size // 2, TRIAL_PAGES * g.page_size - max(queries, 3)], jnp.int32)
    return q, qkv, (jnp.cos(angles), jnp.sin(angles)), pages, tables, starts


def _places(g: Geometry) -> tuple[jax.Array, jax.Array]:
    index = jnp.arange(2 * TRIAL_PAGES * g.page_size, dtype=jnp.int32)
    return 1 + index // g.page_size, index % g.page_size
