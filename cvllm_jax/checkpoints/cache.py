"""Prepared weights on disk: what a quantised checkpoint was converted to; the next start only maps it.

An entry is a folder of two files: ``weights.bin``, every target one after the other, each aligned to
64 bytes, and ``index.json``. It is written under a temporary name and renamed when it is whole and on
disk. The folder of entries is bounded; the least recently used go first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cvllm_jax import __version__
from cvllm_jax.errors import ConfigError

if TYPE_CHECKING:
    import jax

    from cvllm_jax.checkpoints.checkpoint import Checkpoint
    from cvllm_jax.checkpoints.mappings.rules import Rule

__all__ = ["PreparedWeights", "PreparedWeightsWriter", "cache_dir"]

_LAYOUT = 1
_ALIGNMENT = 64
_DEFAULT_LIMIT_GB = 20.0
_TEMPORARY = ".writing-"
_ABANDONED_SECONDS = 3600.0
_CHECKSUM_BYTES = 1 << 20

_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """The folder for everything that can be made again: ``$CVLLM_CACHE``, else the user's cache folder."""
    if chosen := os.environ.get("CVLLM_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cvllm-jax"


def _limit_bytes() -> int:
    text = os.environ.get("CVLLM_CACHE_LIMIT_GB", "")
    try:
        limit = float(text) if text else _DEFAULT_LIMIT_GB
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise ConfigError(f"CVLLM_CACHE_LIMIT_GB must be a number of gigabytes from 0 up, not {text!r}")
    return int(limit * 1e9)


class PreparedWeights:
    """One entry of the cache, there or not."""

    def __init__(self, key: str, targets: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        self._root = cache_dir() / "weights"
        self._folder = self._root / key
        self._tensors: dict[str, dict[str, Any]] = {}
        end = 0
        for name, struct in targets.items():
            dtype, shape = np.dtype(struct.dtype), tuple(int(size) for size in struct.shape)
            self._tensors[name] = {"dtype": dtype.name, "shape": list(shape), "offset": end}
            end += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        self._size = end
        self._dtypes = {np.dtype(struct.dtype).name: np.dtype(struct.dtype) for struct in targets.values()}

    @staticmethod
    def for_load(
        checkpoint: Checkpoint, rules: Sequence[Rule], targets: Mapping[str, jax.ShapeDtypeStruct]
    ) -> PreparedWeights | None:
        """The entry for one way of loading one checkpoint; None where reading the file itself is as fast."""
        if checkpoint.quantization is None or _limit_bytes() == 0:
            return None
        described = {
            "layout": _LAYOUT,
            "versions": [__version__, metadata.version("gguf")],
            "files": checkpoint.fingerprint,
            "rules": repr(rules),
            "targets": [(name, list(struct.shape), np.dtype(struct.dtype).name) for name, struct in targets.items()],
        }
        return PreparedWeights(hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32], targets)

    def load(self) -> dict[str, np.ndarray] | None:
        """The targets as read-only views of the mapped file; None, and no entry left, if it is not whole."""
        if not self._folder.exists():
            return None
        try:
            arrays = self._map()
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("dropping damaged prepared weights in %s: %s", self._folder, error)
            shutil.rmtree(self._folder, ignore_errors=True)
            return None
        try:
            os.utime(self._folder / "index.json")  # what eviction goes by
        except OSError as error:
            _log.debug("cannot mark %s as used: %s", self._folder, error)
        return arrays

    def _map(self) -> dict[str, np.ndarray]:
        index = json.loads((self._folder / "index.json").read_bytes())
        path = self._folder / "weights.bin"
        if index["layout"] != _LAYOUT or index["tensors"] != self._tensors:
            raise ValueError("the index describes other weights")
        if path.stat().st_size != self._size:
            raise ValueError(f"weights.bin has {path.stat().st_size} bytes, not {self._size}")
        data = np.memmap(path, np.uint8, "r")
        if (found := _checksum(data)) != index["checksum"]:
            raise ValueError(f"weights.bin has the checksum {found}, not {index['checksum']}")
        arrays = {}
        for name, entry in self._tensors.items():
            dtype, shape = self._dtypes[entry["dtype"]], entry["shape"]
            part = data[entry["offset"] : entry["offset"] + math.prod(shape) * dtype.itemsize]
            arrays[name] = np.asarray(part).view(dtype).reshape(shape)
        return arrays

    def writer(self) -> PreparedWeightsWriter | None:
        """A writer for this entry; None, with a log line, where there is no room for it."""
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._root.chmod(0o700)
            reason = _make_room(self._root, self._size)
            if reason is None:
                return PreparedWeightsWriter(self._root, self._folder, self._tensors, self._size)
        except OSError as error:
            reason = f"{error.strerror or error}"
        _log.warning("prepared weights are not kept in %s: %s", self._root, reason)
        return None


class PreparedWeightsWriter:
    """Collects targets into a temporary folder; only :meth:`commit` makes it an entry.

    Running out of disk gives the entry up and lets loading go on.
    """

    def __init__(self, root: Path, folder: Path, tensors: dict[str, dict[str, Any]], size: int) -> None:
        self._folder, self._tensors, self._size = folder, tensors, size
        self._temporary: Path | None = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=root))
        self._file = (self._temporary / "weights.bin").open("w+b")
        self._file.truncate(size)
        self._missing = set(tensors)

    def add(self, name: str, array: np.ndarray) -> None:
        if self._temporary is None:
            return
        try:
            self._file.seek(self._tensors[name]["offset"])
            self._file.write(memoryview(array.reshape(-1).view(np.uint8)))
            self._missing.discard(name)
        except OSError as error:
            _log.warning("prepared weights are not kept in %s: %s", self._folder, error.strerror)
            self.close()

    def commit(self) -> None:
        """Make the entry visible, whole and on disk."""
        if self._temporary is None or self._missing:
            return
        try:
            self._file.flush()
            index = {
                "layout": _LAYOUT,
                "tensors": self._tensors,
                "checksum": _checksum(np.memmap(self._file.name, np.uint8, "r")),
            }
            os.fsync(self._file.fileno())
            with (self._temporary / "index.json").open("w") as file:
                json.dump(index, file)
                file.flush()
                os.fsync(file.fileno())
            self._temporary.rename(self._folder)
            _sync_folder(self._folder.parent)
        except OSError as error:
            # another process that loaded the same model may have been first: its entry is as good
            if not self._folder.exists():
                _log.warning("prepared weights are not kept in %s: %s", self._folder, error.strerror)

    def close(self) -> None:
        """Remove what was not committed."""
        self._file.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None


def _checksum(data: np.ndarray) -> str:
    """A 64-bit sum of each megabyte, hashed: as fast as memory, and enough against torn and lost writes."""
    words = np.asarray(data).view(np.uint64)
    step = _CHECKSUM_BYTES // 8
    sums = [int(words[start : start + step].sum()) for start in range(0, words.size, step)]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _make_room(root: Path, size: int) -> str | None:
    """Evict until ``size`` more bytes fit; why they cannot, if they cannot."""
    limit = _limit_bytes()
    if size > limit:
        return f"their {size} bytes are over the limit of {limit} (CVLLM_CACHE_LIMIT_GB)"
    entries: list[tuple[float, int, Path]] = []
    for folder in root.iterdir():
        try:
            stored, used = _entry_state(folder)
        except OSError:  # another process removed it just now
            continue
        if folder.name.startswith(_TEMPORARY) and time.time() - used > _ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            entries.append((used, stored, folder))
    total = sum(stored for _, stored, _ in entries)
    for _, stored, folder in sorted(entries, key=lambda entry: entry[0]):
        if total + size <= limit:
            break
        if not folder.name.startswith(_TEMPORARY):
            shutil.rmtree(folder, ignore_errors=True)
            total -= stored
    if total + size > limit:
        return f"the limit of {limit} bytes is taken by weights that are being written"
    free = shutil.disk_usage(root).free
    if free < 2 * size:
        return f"only {free} bytes are free on the disk, fewer than twice the {size} to be written"
    return None


def _entry_state(folder: Path) -> tuple[int, float]:
    """Size in bytes, and when the entry was last used or written."""
    states = [entry.stat() for entry in os.scandir(folder)] or [folder.stat()]
    return sum(state.st_size for state in states), max(state.st_mtime for state in states)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
