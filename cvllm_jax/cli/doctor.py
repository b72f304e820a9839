"""``cvllm-jax doctor``: what this machine has, what is missing, and the command that fixes it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

import cvllm_jax

__all__ = ["Remedy", "available_bytes", "doctor", "folder_size", "show_bytes", "show_row", "show_section"]

_REQUIRED = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "tokenizers",
    "safetensors",
    "gguf",
    "huggingface-hub",
    "pydantic",
)
_SERVER = ("starlette", "uvicorn")

_PORT = 8000  # serve's default
_LITTLE_MEMORY = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something missing, and what to type."""

    missing: str
    command: str
    essential: bool = False


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Also say whether this model would run: a GGUF file, a folder, or a hub id, which is downloaded.",
            show_default=False,
        ),
    ] = None,
    models: Annotated[bool, typer.Option("--models", help="Show instead which models run, and their tests.")] = False,
) -> None:
    """Show devices, versions, memory and cache folders, and how to get what is missing.

    The exit status is 1 if something is missing without which nothing runs.
    """
    if models:
        from cvllm_jax.cli.models import show_models

        show_models()
        return
    remedies = [*_packages(), *_devices(), *_memory(), *_caches(), *_hub(), *_port(), *_demo_model()]
    if model is not None:
        from cvllm_jax.cli.model_check import check_model

        remedies += check_model(model)
    print()
    if not remedies:
        print("Nothing is missing.")
        return
    print("Missing:")
    for remedy in remedies:
        print(f"  {remedy.missing}\n    {remedy.command}")
    if any(remedy.essential for remedy in remedies):
        raise typer.Exit(1)


def _packages() -> Iterator[Remedy]:
    show_section("Versions")
    show_row("cvllm-jax", cvllm_jax.__version__)
    show_row("Python", f"{platform.python_version()} ({sys.executable})")
    show_row("system", platform.platform())
    versions = {name: _version(name) for name in (*_REQUIRED, *_SERVER)}
    for name, version in versions.items():
        show_row(name, version or "not installed")
    if absent := [name for name in _REQUIRED if versions[name] is None]:
        yield Remedy(", ".join(absent), f"{_pip()} install --upgrade cvllm-jax", essential=True)
    if absent := [name for name in _SERVER if versions[name] is None]:
        yield Remedy(f"{' and '.join(absent)}, for the server", f"{_pip()} install 'cvllm-jax[server]'")


def _devices() -> Iterator[Remedy]:
    show_section("Devices")
    if _version("jax") is None:
        show_row("devices", "unknown without jax")
        return
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:  # a GPU that JAX has a plugin for but cannot start
        show_row("devices", " ".join(str(error).split())[:300])
        yield Remedy("a device that JAX can start", "JAX_PLATFORMS=cpu cvllm-jax doctor", essential=True)
        return
    from cvllm_jax.engine.devices import available_memory
    from cvllm_jax.engine.pool_sizes import CPU_SHARE, CPU_TOKENS, GPU_SHARE

    for device in devices:
        name, stats = f"{device.platform}:{device.id}", device.memory_stats() or {}
        if "bytes_limit" in stats:
            free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
            show_row(name, f"{device.device_kind}, {show_bytes(free)} of {show_bytes(stats['bytes_limit'])} free")
            show_row("", f"KV cache by default: {GPU_SHARE:.0%} of what the weights leave")
        else:
            show_row(name, device.device_kind)
            most = show_bytes(int(available_memory() * CPU_SHARE))
            show_row("", f"KV cache by default: up to {most} and {CPU_TOKENS:,} tokens")
        few_bits = "rounded to int8" if device.platform == "cpu" else "as they are"
        show_row("", f"GGUF weights in few bits by default: {few_bits}")
        for line in _kernels(device):
            show_row("", line)
    has_nvidia = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if has_nvidia and all(device.platform != "gpu" for device in devices):
        if platforms := os.environ.get("JAX_PLATFORMS"):
            yield Remedy(f"the GPU: JAX_PLATFORMS={platforms} hides it", "unset JAX_PLATFORMS")
        else:
            yield Remedy("JAX for the NVIDIA GPU of this machine", f"{_pip()} install 'cvllm-jax[cuda]'")


def _kernels(device: Any) -> Iterator[str]:
    """What an engine would run on a device for a model like Llama 3.1 8B, tried there where it is a kernel, and why."""
    import jax.numpy as jnp

    from cvllm_jax.checkpoints.cache import cache_dir
    from cvllm_jax.engine.kernels import Geometry, choose_kernels

    typical = Geometry(
        heads=32, kv_heads=8, head_dim=128, page_size=16, dtype=jnp.bfloat16, cache_dtype=jnp.bfloat16
    )
    choices = choose_kernels(typical, device, store=cache_dir() / "kernel-trials")
    for name, choice in (("attention", choices.attention), ("writing the KV cache", choices.kv_write)):
        kind = {"xla": "XLA", "hopper": "Pallas kernel for Hopper", "native": "C++ kernel"}[choice.implementation]
        yield f"{name}: {kind}, because {choice.reason}"


def _memory() -> Iterator[Remedy]:
    show_section("Memory")
    show_row(
        "processors",
        f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
    )
    total, available = _memory_bytes()
    if total is not None:
        show_row("memory", show_bytes(total))
    if available is not None:
        show_row("available", show_bytes(available))
        if available < _LITTLE_MEMORY:
            yield Remedy(
                f"memory: only {show_bytes(available)} are available",
                "--max-sequence-length 2048 --max-batch-size 4 --quantization int8  (with serve, chat or generate)",
            )


def _caches() -> Iterator[Remedy]:
    from cvllm_jax.checkpoints.cache import cache_dir

    show_section("Cache folders")
    root = cache_dir()
    show_row("cvllm-jax", f"{root} ({show_bytes(folder_size(root))})")
    for name, what in (("weights", "prepared weights"), ("executables", "compiled steps")):
        show_row(f"  {name}", f"{what}, {show_bytes(folder_size(root / name))}")
    if _version("huggingface-hub") is not None:
        from huggingface_hub.constants import HF_HUB_CACHE

        show_row("hub", f"{HF_HUB_CACHE} ({show_bytes(folder_size(Path(HF_HUB_CACHE)))})")
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        yield Remedy(f"permission to write {existing}", "export CVLLM_CACHE=FOLDER  (one that you can write)")


def _hub() -> Iterator[Remedy]:
    show_section("Hugging Face hub")
    has_token = bool(os.environ.get("HF_TOKEN")) or _token_file()
    show_row("token", "there is one" if has_token else "none; gated models need one: hf auth login")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    show_row("downloads", "switched off by HF_HUB_OFFLINE" if offline else "as models need them")
    if offline:
        yield Remedy("downloads: only models that are in the hub's folder can be named by id", "unset HF_HUB_OFFLINE")


def _token_file() -> bool:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_TOKEN_PATH") or home / "token").is_file()


def _port() -> Iterator[Remedy]:
    show_section("Server")
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", _PORT)) == 0
    show_row(f"port {_PORT}", "taken by a program that listens there" if taken else "free")
    if taken:
        yield Remedy(f"port {_PORT}, which serve takes by default", "cvllm-jax serve --port 0  (any free one)")


def _demo_model() -> Iterator[Remedy]:
    from cvllm_jax.checkpoints.demo import find_demo_model

    show_section("Demo model")
    found = find_demo_model()
    show_row("SmolLM2", str(found) if found is not None else "not installed")
    if found is None:
        yield Remedy("the demo model", "cvllm-jax demo")


def folder_size(folder: Path) -> int:
    """Bytes of all files below ``folder``, links not followed; 0 if there is no such folder."""
    return sum(_sizes(os.scandir(folder))) if folder.is_dir() else 0


def _sizes(entries: Iterable[os.DirEntry[str]]) -> Iterator[int]:
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _sizes(os.scandir(entry))
        elif entry.is_file(follow_symlinks=False):
            yield entry.stat(follow_symlinks=False).st_size


def show_bytes(size: int) -> str:
    """``1234567890`` as ``1.2 GB``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def available_bytes() -> int | None:
    """Memory that programs can still take, where the system says."""
    return _memory_bytes()[1]


def _memory_bytes() -> tuple[int | None, int | None]:
    """Total and available memory, where the system says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return fields.get("MemTotal"), fields.get("MemAvailable")
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    except (AttributeError, ValueError, OSError):
        return None, None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _pip() -> str:
    return f"{sys.executable} -m pip"


def show_section(title: str) -> None:
    """A heading, and an empty line before it."""
    print(f"\n{title}")


def show_row(name: str, value: str) -> None:
    """One line below a heading."""
    print(f"  {name:<16} {value}")
