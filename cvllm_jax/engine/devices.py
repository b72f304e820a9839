"""The device an engine runs on: finding it, its types, its memory, and the sizes of steps that suit it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cvllm_jax.config import Device, DType, EngineConfig
from cvllm_jax.engine.expert_kernels import ExpertGeometry
from cvllm_jax.engine.kernels import Geometry
from cvllm_jax.engine.sampler import Form
from cvllm_jax.errors import ConfigError, DeviceError
from cvllm_jax.models.registry import ModelConfig

__all__ = [
    "PrefillSize",
    "StepShapes",
    "available_memory",
    "cache_sharding",
    "claim_gpu_memory",
    "cpu_multiplies_bf16",
    "find_device",
    "free_memory",
    "geometry_of",
    "mesh_of",
    "resolve_dtype",
    "return_freed_memory",
    "step_shapes",
]

#: Most rows of the decode step that a CPU's engine is ready with.
FIRST_ROWS = 4

_PLATFORMS = {"cpu": ("cpu",), "cuda": ("cuda", "gpu"), "metal": ("mps", "METAL", "metal")}


def claim_gpu_memory() -> None:
    """Let JAX have nearly all of a GPU's memory instead of 75 %, unless the user has said how much.

    Takes effect if JAX has not started its backends yet.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")


def find_device(device: Device) -> jax.Device:
    """JAX's device for ours, or a DeviceError that says what is missing."""
    if device.kind not in _PLATFORMS:
        raise DeviceError(f"unknown kind of device {device.kind!r}; there are cpu, cuda and metal")
    for platform in _PLATFORMS[device.kind]:
        with contextlib.suppress(RuntimeError):
            found = jax.devices(platform)
            if 0 <= device.index < len(found):
                return found[device.index]
            name = f"{device.kind}:{device.index}"
            raise DeviceError(f"there is no device {name}: JAX sees {len(found)} of kind {device.kind}")
    remedy = {"cuda": "pip install 'cvllm-jax[cuda]'", "metal": "pip install jax-mps"}.get(device.kind, "")
    advice = f"; with the hardware there, try: {remedy}" if remedy else ""
    raise DeviceError(f"JAX sees no {device.kind} device{advice}")


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 products in hardware (AVX512-BF16, AMX or ARM's BF16)."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(line.split()))
    return False


def resolve_dtype(dtype: DType, device: jax.Device) -> Any:
    """The array type for weights, activations and cache."""
    if dtype is DType.AUTO:
        native = device.platform != "cpu" or cpu_multiplies_bf16()
        dtype = DType.BF16 if native else DType.F32
    if dtype is DType.F16 and device.platform == "cpu":
        raise ConfigError("f16 is not supported on CPUs, which have no f16 products; choose bf16 or f32", param="dtype")
    return {DType.BF16: jnp.bfloat16, DType.F16: jnp.float16, DType.F32: jnp.float32}[dtype]


class PrefillSize(NamedTuple):
    """How much a prefill step takes."""

    tokens: int
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShapes:
    """Sizes and forms that steps are compiled for."""

    query_block: int
    """Prompt tokens of one sequence that attention takes as a unit."""
    prefill: tuple[PrefillSize, ...]
    prefill_form: Form
    decode_rows: tuple[int, ...]
    decode_forms: tuple[Form, ...]
    """The cheapest first; the last one serves every request."""
    decode_steps: tuple[int, ...]
    """Steps in one go: 1, and the setting if it is more."""
    drafts: int = 0
    """Drafted tokens that a sequence may have in a decode step, each a row of its own."""
    most_padding: float = 1.0
    """Share of a prefill step that may be padding before several smaller steps are run in its place."""
    warm_up_runs: int
    """How often each step runs before it is at its best."""
    first_prefill: int | None = None
    """Tokens of the prefill step that, with ``first_decode``, serves any request, in several runs where they are many;
    an engine is ready with these two, and a thread loads the others. None: an engine is ready with all of them."""
    first_decode: int = 0


def step_shapes(config: EngineConfig, platform: str) -> StepShapes:
    """Few shapes, because each is a program to compile: at most twelve with the one that admits sequences."""
    gpu = platform == "gpu"
    # Mosaic's tiles want 128 queries; a CPU has no tiles to fill and wastes less on the ends of prompts
    query_block = 128 if gpu else 64
    blocks = -(-config.prefill_chunk_size // query_block)
    if gpu:
        prefill = tuple(PrefillSize(count * query_block, count) for count in _sizes(blocks, 3))
    else:
        # 192 tokens cost each as little as 512 do, a program takes 80 MB, a block's logits cost what five tokens do.
        # Prompts end amid blocks, and no padding is computed for that; a GPU has not been measured
        prefill = tuple(PrefillSize(count * query_block, 4) for count in _sizes(min(blocks, 3), 2))
    forms = (Form.GREEDY, Form.STRAIGHT) if gpu else (Form.CONDITIONAL,)
    steps = tuple(sorted({1, config.decode_steps}))
    # a GPU waits for the weights, whatever the number of rows, and loses little by padding
    drafts = config.num_speculative_tokens
    decode_rows = _sizes(max(config.max_batch_size, 1 + drafts), 8 // len(forms) // len(steps))
    return StepShapes(
        query_block=query_block,
        prefill=prefill,
        prefill_form=forms[-1],
        decode_rows=decode_rows,
        decode_forms=forms,
        decode_steps=steps,
        drafts=drafts,
        # a GPU waits for weights and launches; a CPU computes padding like anything else
        most_padding=1.0 if gpu else 0.25,
        # a CUDA graph is recorded by the second run and replayed by the third
        warm_up_runs=3 if gpu else 1,
        # on a GPU XLA measures products while it compiles, and requests would be measured too. On a CPU one block of a
        # prompt costs a token as little as many do, and four rows little more than one
        first_prefill=None if gpu else prefill[0].tokens,
        first_decode=max((rows for rows in decode_rows if rows <= FIRST_ROWS), default=decode_rows[0]),
    )


def _sizes(largest: int, count: int) -> tuple[int, ...]:
    """At most ``count`` sizes from 1 to ``largest``, evenly spaced in ratio and at least doubling."""
    ratio = max(2.0, largest ** (1 / max(count - 1, 1)))
    sizes = [largest]
    while len(sizes) < count and sizes[-1] > 1:
        sizes.append(max(1, min(sizes[-1] - 1, round(sizes[-1] / ratio))))
    return tuple(sorted({1, *sizes} if len(sizes) < count else {1, *sizes[:-1]}))


def geometry_of(config: EngineConfig, model: ModelConfig, dtype: Any) -> Geometry:
    """Shapes and types of attention and cache."""
    return Geometry(
        heads=model.num_attention_heads,
        kv_heads=model.num_key_value_heads,
        head_dim=model.head_dim,
        rotary_dim=model.rotary_dim,
        page_size=config.page_size,
        dtype=dtype,
        cache_dtype={"auto": dtype, "int8": jnp.int8, "fp8": jnp.float8_e4m3fn}[config.kv_cache_dtype],
        shares_values=model.shares_values,
        index_dim=model.index_dim,
        experts=None if model.experts is None else ExpertGeometry(model.hidden_size, *model.experts),
    )


def available_memory() -> int:
    """Bytes that this machine can give without swapping."""
    with contextlib.suppress(OSError), open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return 4 << 30


def free_memory(device: jax.Device) -> str:
    """What a message says of a device's memory, where the device tells."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return ""
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return f" with {free / 2**30:.2f} of {stats['bytes_limit'] / 2**30:.2f} GiB free"


def return_freed_memory() -> None:
    """Give the heap's free pages back to the system: compiling the demo model's steps leaves 300 MB of them."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries do so by themselves, or cannot
        ctypes.CDLL(None).malloc_trim(0)


def cache_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Where the arrays of caches are: split by heads."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "tp"))


def mesh_of(devices: Items[jax.Device]) -> jax.sharding.Mesh:
    """The one mesh that every array is placed through; its axis ``tp`` splits weights and heads."""
    import numpy as np

    return jax.sharding.Mesh(np.asarray(devices), ("tp",))
