"""Prepared checkpoints: folders with weights in the engine's own layout, which loading only has to map.

A folder is what ``cvllm-jax convert`` writes (:mod:`cvllm_jax.checkpoints.preparing`):

- ``weights/`` is a checkpoint of Orbax, zarr without compression: each array is one chunk, so one file of its numbers
  in C order. Orbax writes it and any program restores it with Orbax; here the files are mapped. That is what makes
  loading fast, and of an array that is split over devices each part is read for its device alone.
- ``cvllm.json`` has the arrays' shapes and types and the layouts of quantised weights. It is written last.
- ``config.json``, ``generation_config.json`` and the files of the tokenizer are those of any model folder. In place of
  the tokenizer's, a folder made of a GGUF file has that file's metadata, ``metadata.gguf``.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Final

import jax
import ml_dtypes
import numpy as np

from cvllm_jax.checkpoints.checkpoint import Checkpoint, TensorInfo
from cvllm_jax.checkpoints.folder import eos_from_config, read_config, read_json, sampling_from_config
from cvllm_jax.checkpoints.mapped_file import map_file
from cvllm_jax.checkpoints.mappings.rules import Rule
from cvllm_jax.checkpoints.name_lists import listed
from cvllm_jax.checkpoints.quantizing import METHODS, StoredLayout
from cvllm_jax.config import Progress
from cvllm_jax.errors import ModelLoadError, shown

__all__ = [
    "GGUF_METADATA", "MANIFEST", "NIBBLES", "VERSION", "WEIGHTS", "PreparedCheckpoint", "array_file", "open_prepared",
    "stored_struct",
]  # fmt: skip

MANIFEST: Final = "cvllm.json"
WEIGHTS: Final = "weights"
GGUF_METADATA: Final = "metadata.gguf"
#: The newest version of the manifest that is read, and the one that is written.
VERSION: Final = 1

_FLOATS: Final = {
    "float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16),
}  # fmt: skip
_STORED: Final = _FLOATS | {"int8": np.dtype(np.int8), "uint8": np.dtype(np.uint8)}
#: Types that lie on disk two in a byte, the even column's in the low half.
NIBBLES: Final = (METHODS["int4"], METHODS["mxfp4"])
_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
_MOST_DIMENSIONS = 4
_THREADS = 4
_STAGE = "loading weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedCheckpoint(Checkpoint):
    """An opened prepared checkpoint. Its tensors have the names of the engine's weights."""

    _weights: _Arrays = field(repr=False)
    layouts: Mapping[str, StoredLayout]
    """By dotted path the layout of each quantised weight; empty for plain numbers."""
    rounded_to: tuple[str, int | None] | None
    """The method and size of groups that all matrices of layers were rounded to; None: to none, or not alike."""
    method: str | None
    """The method, or of weights that are as their source had them its name for that; None for plain numbers."""

    @property
    def quantization(self) -> str | None:
        return self.method

    @property
    def gguf_metadata(self) -> Path | None:
        path = self.path / GGUF_METADATA
        return path if os.path.lexists(path) else None

    def rules(self) -> tuple[Rule, ...]:
        """Each weight is made of the tensor of its name: what rounds plain numbers of this checkpoint."""
        return tuple(Rule(target=name, hf=(name,)) for name in self.tensors)

    def place(
        self,
        structs: Mapping[str, jax.ShapeDtypeStruct],
        shardings: Mapping[str, jax.sharding.Sharding],
        progress: Progress | None = None,
    ) -> dict[str, jax.Array]:
        """Every weight on its devices, which read no more than their parts. Floats may be of another type.

        Raises:
          ModelLoadError: weights are missing, unknown or misshapen, all of which are listed, or too large for float16.
        """
        self._compare(structs)
        total, done = sum(info.nbytes for info in self._weights.infos.values()), 0
        placed = {}
        self._weights.read_ahead()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="weights") as pool:
            names = list(structs)
            for name, array in zip(names, pool.map(lambda n: self._placed(n, structs[n], shardings[n]), names)):
                placed[name] = array
                done += self._weights.infos[name].nbytes
                if progress is not None:
                    progress(_STAGE, done, total)
        return placed

    def _placed(self, name: str, struct: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
        stored = self._weights.array(name)
        dtype = np.dtype(struct.dtype)
        if dtype != stored.dtype:
            stored = _as_held(stored, dtype)
            if dtype == np.float16 and not np.isfinite(stored).all():
                raise ModelLoadError(f"{name} has values outside float16's range: choose bf16 or f32")
        return jax.make_array_from_callback(stored.shape, sharding, lambda index: stored[index]).block_until_ready()

    def _compare(self, structs: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        infos, wrong = self._weights.infos, []
        for name, struct in structs.items():
            wanted = stored_struct(struct)
            if (found := infos.get(name)) is None:
                continue
            floats = found.dtype.name in _FLOATS and np.dtype(wanted.dtype).name in _FLOATS
            if found.shape != wanted.shape or not (floats or found.dtype == wanted.dtype):
                wrong.append(f"{name} {found.dtype} {list(found.shape)} for {wanted.dtype} {list(wanted.shape)}")
        missing = [name for name in structs if name not in infos]
        extra = [name for name in infos if name not in structs]
        problems = [
            f"{len(names)} {kind} ({listed(names, alike=kind == 'misshapen', most_characters=400)})"
            for kind, names in (("missing", missing), ("unexpected", extra), ("misshapen", wrong))
            if names
        ]
        if problems:
            raise ModelLoadError(
                f"the weights of {self.name} do not fit the model: {'; '.join(problems)}; convert the model again"
            )


def open_prepared(folder: Path) -> PreparedCheckpoint:
    """Open what ``cvllm-jax convert`` has written.

    Raises:
      ModelLoadError: it is damaged, incomplete, or of a version that is too new.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    version = manifest.get("version")
    if type(version) is not int or version < 1:
        raise _damaged(path, f"the version {shown(version)}")
    if version > VERSION:
        raise ModelLoadError(
            f"{folder} has version {version} of prepared checkpoints and this cvllm-jax reads up to {VERSION}: "
            "install a newer one, or convert the model again"
        )
    infos = _infos(manifest.get("tensors"), folder)
    layouts = _layouts(manifest.get("layouts"), path)
    rounded_to, method = _quantization(manifest.get("quantization"), layouts, path)
    config, path = read_config(folder), folder / "generation_config.json"
    generation = read_json(path) if os.path.lexists(path) else {}
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(infos):
        raise ModelLoadError(f"{folder} announces {shown(layers)} layers but has only {len(infos)} tensors")
    status = os.stat(folder / MANIFEST)
    return PreparedCheckpoint(
        name=folder.resolve().name,
        path=folder,
        format="prepared",
        config=config,
        eos_token_ids=eos_from_config(config, generation, folder),
        generation_defaults=sampling_from_config(generation, path),
        tensors={
            name: TensorInfo(info.shape, info.dtype.name, info.dtype.name in _FLOATS) for name, info in infos.items()
        },
        fingerprint=f"{folder.resolve()} {status.st_mtime_ns} {hashlib.sha256(repr(manifest).encode()).hexdigest()}",
        _weights=_Arrays(infos),
        layouts=layouts,
        rounded_to=rounded_to,
        method=method,
    )


def stored_struct(struct: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """How an array of the engine lies on disk: types of 4 bits two in a byte, float8 in bytes, others as they are."""
    dtype = np.dtype(struct.dtype)
    if dtype in _STORED.values():
        return jax.ShapeDtypeStruct(struct.shape, dtype)
    shape = (*struct.shape[:-1], struct.shape[-1] // 2) if dtype in NIBBLES else struct.shape
    return jax.ShapeDtypeStruct(shape, np.uint8)


def array_file(folder: Path, name: str, dimensions: int) -> Path:
    """The file of the only chunk of an array."""
    return folder / WEIGHTS / name / ".".join("0" * dimensions)


def _as_held(stored: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """An array as it lies on disk in the type that the engine wants."""
    if dtype in NIBBLES:
        codes = np.stack([stored & 15, stored >> 4], -1).reshape(*stored.shape[:-1], -1)
        if dtype == METHODS["int4"]:  # numpy has the sign in all of the byte
            codes = (codes ^ 8) - np.uint8(8)
        return codes.view(dtype)
    if stored.dtype == np.uint8:
        return stored.view(dtype)
    with np.errstate(over="ignore"):
        return stored.astype(dtype)


@dataclass(frozen=True, slots=True)
class _Info:
    """An array on disk."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    path: Path

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Arrays:
    """The arrays of a folder, each mapped when it is wanted."""

    def __init__(self, infos: Mapping[str, _Info]) -> None:
        self.infos = infos
        self._lock = Lock()
        self._mapped: dict[str, np.ndarray] = {}

    def array(self, name: str) -> np.ndarray:
        """A read-only view of a file; it keeps the file mapped."""
        with self._lock:
            if name not in self._mapped:
                info = self.infos[name]
                content = map_file(info.path)
                if len(content) != info.nbytes:
                    raise ModelLoadError(f"{info.path} has {len(content)} bytes, not {info.nbytes}")
                self._mapped[name] = np.frombuffer(content, np.uint8).view(info.dtype).reshape(info.shape)
                if hasattr(content, "madvise"):
                    content.madvise(mmap.MADV_WILLNEED)
            return self._mapped[name]

    def read_ahead(self) -> None:
        """Have the system begin to read all files, in whatever order suits the disk."""
        for name in self.infos:
            self.array(name)

    def read(self, name: str, start_row: int = 0, stop_row: int | None = None) -> np.ndarray:
        array = self.array(name)
        return array.reshape(-1, array.shape[-1])[start_row:stop_row]

    def packed(self, name: str, start_row: int, stop_row: int) -> None:
        """Quantised arrays are placed as they are, plain ones are no small numbers."""

    def layout(self, name: str) -> None:
        """Likewise."""

    def close(self) -> None:
        """Let the files go; arrays that still view them keep them mapped until they are gone."""
        self._mapped.clear()


def _infos(tensors: object, folder: Path) -> dict[str, _Info]:
    """The arrays that a manifest names, each of them held to the size of its file."""
    if not isinstance(tensors, dict) or not tensors:
        raise _damaged(folder / MANIFEST, "no tensors")
    infos = {}
    absent, cut = [], []
    for name, entry in tensors.items():
        match entry:
            case {"shape": list(shape), "dtype": str(kind)} if _NAME.fullmatch(name) and len(name) <= 200:
                pass
            case _:
                raise _damaged(folder / MANIFEST, f"the tensor {shown(name)}: {shown(entry)}")
        sizes = all(type(size) is int and 0 < size < 2**40 for size in shape)
        if not sizes or not 0 < len(shape) <= _MOST_DIMENSIONS or kind not in _STORED:
            raise _damaged(folder / MANIFEST, f"the tensor {name} of type {shown(kind)} and shape {shown(shape)}")
        info = infos[name] = _Info(tuple(shape), _STORED[kind], array_file(folder, name, len(shape)))
        try:
            found = os.stat(info.path).st_size
        except OSError:
            absent.append(name)
        else:
            cut += [f"{name} {found} bytes, not {info.nbytes}"] if found != info.nbytes else []
    if absent or cut:
        problems = [f"{len(absent)} tensors are missing ({listed(absent)})"] if absent else []
        problems += [f"{len(cut)} tensors have another size ({listed(cut)})"] if cut else []
        raise ModelLoadError(f"{folder} is not whole: {' and '.join(problems)}; convert the model again")
    return infos


def _layouts(layouts: object, path: Path) -> dict[str, StoredLayout]:
    if not isinstance(layouts, dict):
        raise _damaged(path, "no layouts")
    return {name: _layout(name, entry, path) for name, entry in layouts.items()}


def _layout(name: str, entry: object, path: Path) -> StoredLayout:
    match entry:
        case {"method": "int8" | "int4" | "fp8" | "mxfp4" as method, "group_size": size, "offsets": bool(offsets)} if (
            size is None or (type(size) is int and 0 < size < 2**31)
        ):
            return StoredLayout(method, size, offsets)
    raise _damaged(path, f"the layout {shown(entry)} of {shown(name)}")


def _quantization(
    entry: object, layouts: Mapping[str, StoredLayout], path: Path
) -> tuple[tuple[str, int | None] | None, str | None]:
    match entry:
        case None if not layouts:
            return None, None
        case {"method": str(method), "uniform": bool(uniform), "group_size": size} if layouts and (
            size is None or type(size) is int
        ):
            return (method, size) if uniform else None, method[:80]
    raise _damaged(path, f"the quantization {shown(entry)}")


def _damaged(path: Path, what: str) -> ModelLoadError:
    return ModelLoadError(f"{path} is damaged: it has {what}")
