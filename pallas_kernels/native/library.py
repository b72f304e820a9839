"""Compiling the C++ sources beside this file, once a machine, and making their operations known to XLA."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

__all__ = ["FEATURES", "OPERATIONS", "build", "load", "refusal"]

#: Symbols of the library, which are also the names that programs call.
OPERATIONS = ("cvllm_int8_matmul", "cvllm_kv_write", "cvllm_attention")

#: What the sources use beyond AVX2.
FEATURES = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")

_SOURCES = ("threads", "int8_matmul", "kv_write", "attention")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-pthread")

#: A compiler that takes longer than this many seconds is taken for one that hangs.
_PATIENCE = 120

_lock = threading.Lock()
_outcome: list[str | None] = []


def refusal() -> str | None:
    """Why the kernels cannot be compiled for this machine, or None; asks neither a compiler nor the disk's cache."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"they are for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
    missing = [feature for feature in FEATURES if feature not in _cpu_flags()]
    if missing:
        return f"the processor has no {', '.join(missing)}"
    if _compiler() is None:
        return "there is no C++ compiler (c++, g++ or clang++, or what CXX names)"
    return None


def load(folder: Path | None) -> str | None:
    """Compile the kernels if that has not been done, and register them with JAX; a second call does nothing.

    Arguments:
      folder: keeps the compiled library, for this user alone; None compiles into a temporary folder.

    Returns:
      Why the kernels cannot be used, or None.
    """
    with _lock:
        if not _outcome:
            _outcome.append(_load(folder))
        return _outcome[0]


def _load(folder: Path | None) -> str | None:
    if (reason := refusal()) is not None:
        return reason
    try:
        library = ctypes.CDLL(str(build(folder)))
        for name in OPERATIONS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stderr.splitlines() if "error" in line), f"exit status {error.returncode}")
        return f"{error.cmd[0]} could not compile them: {said}"
    except (OSError, AttributeError, subprocess.TimeoutExpired) as error:
        return f"they could not be compiled or loaded: {error}"
    return None


def build(folder: Path | None) -> Path:
    """The library for these sources, this compiler and this processor."""
    compiler = _compiler()
    assert compiler is not None
    here = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=_PATIENCE).stdout
    for part in (repr((compiler, _FLAGS, jax.__version__)).encode(), version, " ".join(_cpu_flags()).encode()):
        digest.update(part + b"\0")
    for source in sorted([*here.glob("*.cc"), *here.glob("*.h")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    if folder is not None:
        kept = folder / f"{digest.hexdigest()}.so"
        if kept.exists() and _ours_alone(folder) and _ours_alone(kept):
            return kept
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _ours_alone(folder):
            folder = None
    with tempfile.TemporaryDirectory() as work:
        made = _compile(compiler, here, Path(work))
        if folder is None:
            # loaded libraries outlive their files
            kept = Path(tempfile.mkdtemp()) / made.name
        shutil.move(made, staged := kept.with_suffix(f".{os.getpid()}"))
        os.replace(staged, kept)
    return kept


def _compile(compiler: list[str], sources: Path, work: Path) -> Path:
    def run(*arguments: str) -> None:
        subprocess.run([*compiler, *arguments], capture_output=True, text=True, check=True, timeout=_PATIENCE)

    def to_object(name: str) -> str:
        made = str(work / f"{name}.o")
        run(*_FLAGS, "-c", str(sources / f"{name}.cc"), "-o", made)
        return made

    def handlers() -> str:
        # XLA's headers take most of the time, and what they become has nothing to optimise
        made = str(work / "handlers.o")
        run(*_FLAGS, "-O1", "-w", f"-I{jax.ffi.include_dir()}", "-c", str(sources / "handlers.cc"), "-o", made)
        return made

    with ThreadPoolExecutor() as threads:
        first = threads.submit(handlers)
        objects = [*threads.map(to_object, _SOURCES), first.result()]
    library = work / "native.so"
    run("-shared", "-pthread", *objects, "-o", str(library))
    return library


def _compiler() -> list[str] | None:
    if named := shlex.split(os.environ.get("CXX", "")):
        return named if shutil.which(named[0]) else None
    return next(([found] for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def _cpu_flags() -> list[str]:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("flags"):
                return line.partition(":")[2].split()
    return []


def _ours_alone(path: Path) -> bool:
    """Whether nobody but this user can have written it: it is code."""
    status = path.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022
