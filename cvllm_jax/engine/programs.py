"""Compiled steps: built ahead of time, kept by name, stored whole on disk.

XLA's own persistent cache saves compilation but neither tracing nor lowering, which cost as much again; a stored
executable saves all three. A stored file is code: the folder belongs to the user alone, and a file that cannot be
read is compiled anew and replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import platform
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib.version
from jax.experimental import serialize_executable

from cvllm_jax.errors import DeviceError, GenerationError

__all__ = ["Programs", "environment_key"]

log = logging.getLogger("cvllm_jax.engine")

#: Files kept in the folder; the least recently used go first.
MAX_STORED = 200


class Programs:
    """Compiled programs by name, for any number of threads: one makes a program, the others wait for it.

    Arguments:
      key: everything besides name and shapes that a program depends on.
      folder: where executables are stored; None stores nothing.
    """

    def __init__(self, key: str, folder: Path | None) -> None:
        self._key = key
        self._folder = folder
        self._programs: dict[str, Any] = {}
        self._being_made: dict[str, threading.Lock] = {}
        self._changing = threading.Lock()
        self._forbidden = False
        self.compilations = 0

    def __contains__(self, name: str) -> bool:
        return name in self._programs

    def get(self, name: str, build: Callable[[], Any], options: dict[str, Any] | None = None) -> Any:
        """The program ``name``; ``build`` gives it lowered if it is neither in memory nor on disk."""
        if (program := self._programs.get(name)) is not None:
            return program
        with self._being_made.setdefault(name, threading.Lock()):
            if (program := self._programs.get(name)) is not None:  # another thread was at it
                return program
            if self._forbidden:
                raise GenerationError(f"step {name} is not compiled, and compiling is forbidden now")
            program = self._load(name) or self._compile(name, build, options)
            with self._changing:
                self._programs[name] = program
                self.compilations += 1
            return program

    def clear(self) -> None:
        """Let go of every program: on CPUs they hold hundreds of MB."""
        self._programs.clear()

    @contextlib.contextmanager
    def forbid_compile(self) -> Iterator[None]:
        """Within this block a step that is not compiled raises; a guard for tests."""
        self._forbidden = True
        try:
            yield
        finally:
            self._forbidden = False

    def _compile(self, name: str, build: Callable[[], Any], options: dict[str, Any] | None) -> Any:
        try:
            compiled = build().compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            raise DeviceError(f"compiling step {name} failed: {str(error).splitlines()[0]}") from error
        if self._folder is not None:
            self._store(name, compiled)
        return compiled

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        digest = hashlib.blake2b(f"{self._key}\n{name}".encode(), digest_size=16).hexdigest()
        return self._folder / f"{digest}.bin"

    def _load(self, name: str) -> Any:
        if self._folder is None or not (path := self._path(name)).exists():
            return None
        if not (_ours_alone(self._folder) and _ours_alone(path)):
            log.warning("stored steps in %s are not used: others could have written them", self._folder)
            return None
        try:
            program = serialize_executable.deserialize_and_load(*pickle.loads(path.read_bytes()))
            os.utime(path)
        except Exception:  # whatever is wrong with the file: it is only a cache
            path.unlink(missing_ok=True)
            return None
        return program

    def _store(self, name: str, compiled: Any) -> None:
        assert self._folder is not None
        try:
            data = pickle.dumps(serialize_executable.serialize(compiled))
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(data)
            os.replace(file.name, self._path(name))
            stored = sorted(self._folder.glob("*.bin"), key=lambda path: path.stat().st_mtime)
            for path in stored[:-MAX_STORED]:
                path.unlink(missing_ok=True)
        except (OSError, ValueError, TypeError, AttributeError, pickle.PicklingError, jax.errors.JaxRuntimeError):
            return  # a full disk, or a program that cannot be serialised, only costs the next start some time


def _ours_alone(path: Path) -> bool:
    """Whether nobody but this user can have written it; systems without user ids keep profiles apart themselves."""
    status = path.stat()
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


@cache
def environment_key() -> str:
    """Versions, hardware and our own source: what makes a stored executable wrong when it changes."""
    digest = hashlib.blake2b(digest_size=16)
    versions = (jax.__version__, jaxlib.version.__version__, flax.__version__, platform.python_version())
    processors = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    for part in (*versions, platform.machine(), _cpu_features(), processors):  # XLA:CPU divides loops among processors
        digest.update(part.encode() + b"\0")
    digest.update(os.environ.get("XLA_FLAGS", "").encode())
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "engine", package / "models", package / "testing", package.parent / "pallas_kernels"):
        for source in sorted(path for kind in ("*.py", "*.cc", "*.h") for path in folder.rglob(kind)):
            digest.update(source.read_bytes())
    return digest.hexdigest()


def _cpu_features() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        return next((line for line in file if line.startswith(("flags", "Features"))), "")
    return platform.processor()
