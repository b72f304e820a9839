"""One view of every checkpoint: a GGUF file, a Hugging Face folder, a prepared folder or a model of the hub."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from cvllm_jax.checkpoints.demo import demo_sampling
from cvllm_jax.checkpoints.folder import (
    PICKLES,
    QUANTIZED,
    FolderWeights,
    convert_pickles,
    eos_from_config,
    read_config,
    read_json,
    sampling_from_config,
)
from cvllm_jax.checkpoints.gguf import GgufFile
from cvllm_jax.checkpoints.gguf_config import ROPE_TENSORS, config_from_gguf, eos_from_gguf, sampling_from_gguf
from cvllm_jax.checkpoints.gguf_header import require_gguf
from cvllm_jax.checkpoints.mxfp4 import Mxfp4Folder, Mxfp4Tensor
from cvllm_jax.checkpoints.pooling import base_model
from cvllm_jax.checkpoints.quantized_folder import QuantizedFolder, QuantizedTensor
from cvllm_jax.checkpoints.quantizing import PackedRows, StoredLayout
from cvllm_jax.checkpoints.safetensors_file import READABLE
from cvllm_jax.checkpoints.text_part import text_config, text_tensor
from cvllm_jax.closing import Closing
from cvllm_jax.config import Progress
from cvllm_jax.errors import ModelLoadError

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_PLAIN = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a checkpoint stores under one name."""

    shape: tuple[int, ...]
    """Rows first: ``[out, in]``."""
    dtype: str
    """The stored type: ``"BF16"``, ``"Q4_1"`` ..."""
    readable: bool
    """Whether rows of this type can be read as numbers."""


class _Weights(Protocol):
    def read(self, name: str, start_row: int = 0, stop_row: int | None = None) -> np.ndarray: ...
    def packed(self, name: str, start_row: int, stop_row: int) -> PackedRows | None: ...
    def layout(self, name: str) -> StoredLayout | None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(Closing):
    """An opened checkpoint; weights stay on disk until their rows are read."""

    name: str
    """File stem, folder name or hub id."""
    path: Path
    """The GGUF file, or the folder."""
    format: Literal["gguf", "safetensors", "prepared", "dummy", "scripted"]
    config: dict[str, Any]
    """In the keys of a Hugging Face ``config.json``, also where it comes from GGUF metadata."""
    eos_token_ids: tuple[int, ...]
    generation_defaults: dict[str, Any]
    """Sampling settings that the files recommend: temperature, top_p, top_k, min_p, repetition_penalty."""
    tensors: Mapping[str, TensorInfo]
    fingerprint: str
    """Changes when the files change: their resolved paths, sizes, modification times and headers."""
    _weights: _Weights = field(repr=False)

    @property
    def quantization(self) -> str | None:
        """The quantised type that most tensors are stored in, None for plain floating point."""
        if isinstance(self._weights, QuantizedFolder | Mxfp4Folder):
            return self._weights.method
        if self.format != "gguf":
            return None
        kinds = Counter(info.dtype for info in self.tensors.values() if info.dtype not in _PLAIN)
        return kinds.most_common(1)[0][0] if kinds else None

    @property
    def gguf_metadata(self) -> Path | None:
        """The GGUF file that has the tokenizer and the chat template; None: a folder's files have them."""
        return self.path if self.format == "gguf" else None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows of a tensor, ``[rows, in]``: as stored, or float32 where the file is quantised.

        All dimensions but the last count as rows; a one-dimensional tensor is one row. Safe to call
        from several threads.
        """
        return self._weights.read(name, start, stop)

    def layout(self, name: str) -> StoredLayout | None:
        """The layout that keeps a tensor's numbers as the file stores them, or nearly; None for plain numbers."""
        return self._weights.layout(name)

    def packed(self, name: str, start: int, stop: int) -> PackedRows | None:
        """The same rows as small numbers with scales, as the file has them; None where it has none that we can use."""
        return self._weights.packed(name, start, stop)

    def close(self) -> None:
        self._weights.close()


def open_checkpoint(source: str | Path, *, revision: str | None = None, progress: Progress | None = None) -> Checkpoint:
    """Open a GGUF file, a folder (or a safetensors file in one), or download a hub id.

    What exists as a path is a path; ``org/name`` is looked up on the hub otherwise.

    Arguments:
        revision: branch, tag or commit of a hub id.
        progress: told of bytes while a model is downloaded.

    Raises:
        ModelLoadError: in one sentence, why it cannot be opened.
    """
    path = Path(source).expanduser()
    try:
        exists = bool(str(source)) and path.exists()
    except (OSError, ValueError):  # names that no file can have
        exists = False
    if not exists:
        if not _HUB_ID.fullmatch(str(source)):
            raise ModelLoadError(f"{source!s:.300} is no existing file or folder, and no hub id (org/name)")
        from cvllm_jax.checkpoints.hub import download

        return _open_folder(download(str(source), revision=revision, progress=progress), name=str(source))
    if revision is not None:
        raise ModelLoadError(f"a revision belongs to a hub id, but {source} is a local path")
    try:
        if path.is_dir():
            from cvllm_jax.checkpoints.prepared import MANIFEST, open_prepared  # which needs this module

            return open_prepared(path) if os.path.lexists(path / MANIFEST) else _open_folder(path)
        if path.suffix == ".safetensors":
            return _open_folder(path.parent, weights=path.name)
        if path.suffix.lower() in PICKLES:
            raise ModelLoadError(
                f"{path} is a pickle file, which can run code when it is opened: {convert_pickles(path.parent)}"
            )
        return _open_gguf(path)
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror}") from error


def _open_gguf(path: Path) -> Checkpoint:
    file = GgufFile(path)
    try:
        config = config_from_gguf(file)
        return Checkpoint(
            name=path.stem,
            path=path,
            format="gguf",
            config=config,
            eos_token_ids=eos_from_gguf(file, config.get("vocab_size")),
            generation_defaults=sampling_from_config(sampling_from_gguf(file), path) or demo_sampling(file.metadata),
            tensors={
                tensor.name: TensorInfo(tensor.shape, tensor.type.name, _can_dequantize(tensor.type))
                for tensor in file.tensors.values()
                if tensor.name not in ROPE_TENSORS
            },
            fingerprint=_fingerprint(path, file.header_digest()),
            _weights=file,
        )
    except ModelLoadError:
        file.close()
        raise


def _open_folder(folder: Path, *, name: str | None = None, weights: str | None = None) -> Checkpoint:
    config = read_config(folder)
    text = text_config(config)
    config = base_model(folder, config if text is None else text)
    path = folder / "generation_config.json"
    generation = read_json(path) if os.path.lexists(path) else {}
    eos_token_ids = eos_from_config(config, generation, folder)
    generation_defaults = sampling_from_config(generation, path)
    files: FolderWeights | QuantizedFolder | Mxfp4Folder
    files = FolderWeights(folder, weights, rename=None if text is None else text_tensor)
    options = config.get("quantization_config") or config.get("compression_config") or {}
    if options.get("quant_method") in QUANTIZED:
        try:
            is_mxfp4 = options["quant_method"] == "mxfp4"
            files = Mxfp4Folder(files) if is_mxfp4 else QuantizedFolder(files, options, folder)
        except ModelLoadError:
            files.close()
            raise
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(files.tensors):
        count = len(files.tensors)
        files.close()
        raise ModelLoadError(f"{folder} announces {layers} layers but has only {count} tensors")
    return Checkpoint(
        name=name or folder.resolve().name,
        path=folder,
        format="safetensors",
        config=config,
        eos_token_ids=eos_token_ids,
        generation_defaults=generation_defaults,
        tensors={
            name: TensorInfo(
                tensor.shape,
                tensor.dtype,
                tensor.dtype in READABLE or isinstance(tensor, QuantizedTensor | Mxfp4Tensor),
            )
            for name, tensor in files.tensors.items()
        },
        fingerprint="\n".join(_fingerprint(file.path, file.header_digest()) for file in files.files),
        _weights=files,
    )


def _fingerprint(path: Path, header_digest: str) -> str:
    status = os.stat(path)
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {header_digest}"


@cache
def _can_dequantize(kind: Any) -> bool:
    gguf = require_gguf()
    block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    try:
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
