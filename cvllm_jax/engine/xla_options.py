"""XLA's options for compiled steps, in one place, each with its reason.

An option stands here only if there is a reason to leave the default. None of the GPU's has been measured yet: their
reasons come from XLA's sources and documentation.
"""

from __future__ import annotations

from pathlib import Path

import jax

__all__ = ["compiler_options"]

#: What XLA records into CUDA graphs by default (debug_options_flags.cc), and loops: a program of several decode steps
#: is a loop, and without this the host would launch each of its steps.
GRAPH_OPERATIONS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION"
LOOP_OPERATIONS = f"{GRAPH_OPERATIONS},WHILE"


def compiler_options(
    device: jax.Device, kind: str, *, enable_cuda_graph: bool, loops: bool = False, autotune_cache: Path | None = None
) -> dict[str, str | int]:
    """Options for one step.

    Arguments:
      kind: "prefill", "decode" or "admit".
      loops: the step is a loop of decode steps.
      autotune_cache: folder that keeps what XLA measured of its matrix products, so that an edit of our source, which
        makes stored executables stale, does not measure it all again.
    """
    if device.platform == "cpu":
        # LLVM prefers 256-bit vectors even where there are 512-bit ones, which suit the long rows of prompts
        return {"xla_cpu_prefer_vector_width": 512} if kind == "prefill" else {}
    if device.platform != "gpu":
        return {}
    options: dict[str, str | int] = {}
    if not enable_cuda_graph:
        options["xla_gpu_enable_command_buffer"] = ""  # CUDA graphs are on by default
    elif loops:
        options["xla_gpu_enable_command_buffer"] = LOOP_OPERATIONS
    if autotune_cache is not None:
        autotune_cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        options["xla_gpu_per_fusion_autotune_cache_dir"] = str(autotune_cache)
    return options
