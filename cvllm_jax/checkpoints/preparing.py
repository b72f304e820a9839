"""Writing prepared checkpoints (:mod:`cvllm_jax.checkpoints.prepared`).

Everything goes into a folder beside the one that is asked for, which gets its name when all of it is on disk. What an
interrupted conversion leaves behind begins with a dot and has no manifest; the next one to the same place removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import shutil
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cvllm_jax import __version__
from cvllm_jax.checkpoints.checkpoint import Checkpoint
from cvllm_jax.checkpoints.gguf_header import HeaderReader
from cvllm_jax.checkpoints.mapped_file import map_file
from cvllm_jax.checkpoints.prepared import (
    GGUF_METADATA,
    MANIFEST,
    NIBBLES,
    VERSION,
    WEIGHTS,
    array_file,
    stored_struct,
)
from cvllm_jax.checkpoints.quantizing import StoredLayout
from cvllm_jax.errors import IoError, ModelLoadError, OtherError

__all__ = ["check_place", "write_prepared"]

_TEXT_FILES = (
    "tokenizer.json", "tekken.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "*_Pooling/config.json",
    "*_Dense/config.json", "*_Dense/model.safetensors",
    "LICENSE*", GGUF_METADATA,
)  # fmt: skip
_GGUF_COUNT_OF_TENSORS = slice(8, 16)  # behind the magic and the version
_ORBAX_GIGABYTES = 1  # what Orbax may copy at a time


def check_place(out: Path, *, overwrite: bool) -> None:
    """Refuse a place that nothing can be written to.

    Raises:
      IoError: something is there that is not to be overwritten, or no folder holds the place.
    """
    if not out.parent.is_dir():
        raise IoError(f"{out} cannot be written: there is no folder {out.parent}")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise IoError(f"{out} exists already: say --overwrite to replace a prepared checkpoint")
    if out.is_symlink() or not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise IoError(f"{out} is not a prepared checkpoint, and only such are overwritten")


def write_prepared(
    out: Path,
    checkpoint: Checkpoint,
    weights: Mapping[str, jax.Array],
    layouts: Mapping[str, StoredLayout],
    quantization: Mapping[str, Any] | None,
    *,
    overwrite: bool = False,
) -> int:
    """Write a whole prepared checkpoint, or nothing.

    Arguments:
      checkpoint: where the weights come from: its configuration and the files of its tokenizer are taken over.
      weights: the engine's arrays by name.
      layouts: by dotted path those of quantised weights.
      quantization: ``method``, ``group_size`` and ``uniform`` for the manifest; None for plain numbers.

    Returns:
      The size of all files in bytes.

    Raises:
      IoError: the place is taken, or the disk is full.
      OtherError: Orbax is not installed, or failed.
    """
    check_place(out, overwrite=overwrite)
    size = sum(array.nbytes for array in weights.values())
    if (free := shutil.disk_usage(out.parent).free) < size:
        raise IoError(f"{out} needs {size} bytes and the disk has only {free} left")
    try:
        with _beside(out) as folder:
            _write_text(folder, checkpoint)
            tensors = _write_arrays(folder, weights)
            manifest = {
                "version": VERSION,
                "made_by": f"cvllm-jax {__version__}",
                "quantization": quantization,
                "layouts": {
                    name: {"method": layout.method, "group_size": layout.group_size, "offsets": layout.offsets}
                    for name, layout in layouts.items()
                },
                "tensors": tensors,
            }
            _sync(folder)  # before the manifest, which says that all of this is there
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
            written = _sync(folder)
            _rename(folder, out, overwrite=overwrite)
    except OSError as error:
        if isinstance(error, IoError):
            raise
        raise IoError(f"{out} cannot be written: {error.strerror or error}") from error
    return written


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A locked folder beside another; gone afterwards unless it was renamed."""
    for leftover in out.parent.glob(f".{_escaped(out.name)}.converting-*"):
        with _locked(leftover) as free:
            if free:
                shutil.rmtree(leftover, ignore_errors=True)
    folder = out.with_name(f".{out.name}.converting-{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether this process has the lock of a folder, which ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _write_text(folder: Path, checkpoint: Checkpoint) -> None:
    """All but the weights."""
    config = {
        key: value
        for key, value in checkpoint.config.items()
        if key not in ("quantization_config", "compression_config")  # of the source's weights
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    generation = {**checkpoint.generation_defaults, "eos_token_id": list(checkpoint.eos_token_ids) or None}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1))
    if checkpoint.format == "gguf":
        if dense := [name for name in checkpoint.tensors if name.startswith("dense_")]:
            raise ModelLoadError(f"{dense[0]} comes after pooling, which is not converted: use safetensors")
        (folder / GGUF_METADATA).write_bytes(_gguf_metadata(checkpoint.path))
        return
    for pattern in _TEXT_FILES:
        for path in checkpoint.path.glob(pattern):
            if path.is_file():
                target = folder / path.relative_to(checkpoint.path)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)


def _gguf_metadata(path: Path) -> bytes:
    """A GGUF file of the metadata of another, without tensors."""
    data = map_file(path)
    try:
        header = HeaderReader(path, data)
        header.metadata()
        content = bytearray(data[: header.metadata_end])
    finally:
        data.close()
    content[_GGUF_COUNT_OF_TENSORS] = struct.pack("<Q", 0)
    return bytes(content)


def _write_arrays(folder: Path, weights: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Have Orbax write the arrays; what the manifest says of them."""
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        raise OtherError(
            "converting needs the package orbax-checkpoint: run `pip install orbax-checkpoint`"
        ) from None
    arrays = {name: _as_stored(array) for name, array in weights.items()}
    # one file an array, as it is in memory
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_zarr3=False, use_compression=False, save_concurrent_gb=_ORBAX_GIGABYTES
    )
    quiet = logging.getLogger("absl")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), ocp.Checkpointer(handler) as checkpointer:
            warnings.simplefilter("ignore")
            checkpointer.save((folder / WEIGHTS).absolute(), args=ocp.args.PyTreeSave(arrays))
    except Exception as error:  # storage libraries raise types of their own
        reason = " ".join(str(error).split())[:300]
        raise OtherError(f"the weights could not be written: {type(error).__name__} {reason}") from error
    finally:
        quiet.setLevel(level)
    for name, array in arrays.items():
        path = array_file(folder, name, array.ndim)
        if not path.is_file() or path.stat().st_size != array.nbytes:
            raise OtherError(f"Orbax has not written {name} as one file of {array.nbytes} bytes")
    return {name: {"shape": list(array.shape), "dtype": array.dtype.name} for name, array in arrays.items()}


def _as_stored(array: jax.Array) -> np.ndarray:
    """An array of the engine as it lies on disk."""
    host = np.asarray(array)
    wanted = stored_struct(jax.ShapeDtypeStruct(host.shape, host.dtype))
    if host.dtype in NIBBLES:
        codes = host.view(np.uint8)
        return (codes[..., 0::2] & 15) | (codes[..., 1::2] << 4)
    return host.view(wanted.dtype)


def _sync(folder: Path) -> int:
    """Have everything in a folder on disk; the size of the files in bytes."""
    size = 0
    for place, _, names in os.walk(folder):
        for path in [*(Path(place) / name for name in names), Path(place)]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                size += 0 if path.is_dir() else os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
    return size


def _rename(folder: Path, out: Path, *, overwrite: bool) -> None:
    """Give a whole folder its name, in place of one that was there."""
    check_place(out, overwrite=overwrite)
    old = out.with_name(f"{folder.name}-old")
    if replaced := out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if replaced:
            old.rename(out)
        raise
    _sync_folder(out.parent)
    if replaced:
        shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
