"""Reading safetensors files.

The format: https://huggingface.co/docs/safetensors. Eight bytes of header length, a JSON header, then the
tensors' bytes, one after the other. The file is mapped, so rows are read without loading the tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeGuard

import ml_dtypes
import numpy as np

from cvllm_jax.checkpoints.mapped_file import map_file
from cvllm_jax.errors import ModelLoadError

__all__ = ["READABLE", "SafetensorsFile", "SafetensorsTensor"]

READABLE: Final[Mapping[str, np.dtype[Any]]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_PARTS: Final[Mapping[str, np.dtype[Any]]] = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
# Bits of one number; types that are not readable are known so that they can be refused by name.
_BITS: Final[Mapping[str, int]] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32,
    "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_MAX_HEADER_BYTES = 1 << 23  # real headers have up to a few hundred kilobytes
_MAX_TENSORS = 1 << 16
_MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    name: str
    shape: tuple[int, ...]
    dtype: str
    """As the file spells it: ``"BF16"``, ``"F8_E4M3"`` ..."""
    offset: int
    """From the start of the file, in bytes."""
    nbytes: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])


class SafetensorsFile:
    """A mapped safetensors file.

    Raises:
        ModelLoadError: the file is absent, truncated or inconsistent.
    """

    path: Path
    tensors: Mapping[str, SafetensorsTensor]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map = map_file(self.path)
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        try:
            header = self._header()
            self.tensors = self._table(header)
        except ModelLoadError:
            self.close()
            raise

    def header_digest(self) -> str:
        """SHA-256 of everything before the tensor data."""
        return hashlib.sha256(memoryview(self._map)[: self._data_start]).hexdigest()

    def read(self, name: str, start_row: int = 0, stop_row: int | None = None) -> np.ndarray:
        """Rows of a tensor as stored, ``[rows, in]``, a read-only view of the file.

        All dimensions but the last count as rows; a one-dimensional tensor is one row.

        Raises:
            ModelLoadError: the tensor's type is not supported.
        """
        tensor = self.tensors[name]
        dtype = READABLE.get(tensor.dtype)
        if dtype is None:
            raise ModelLoadError(f"{self.path}: tensors of type {tensor.dtype} are not supported yet")
        stop_row = tensor.rows if stop_row is None else stop_row
        if not 0 <= start_row <= stop_row <= tensor.rows:
            raise IndexError(f"rows {start_row} to {stop_row} of {name}, which has {tensor.rows}")
        columns = tensor.shape[-1] if tensor.shape else 1
        first = tensor.offset + start_row * columns * dtype.itemsize
        data = self._bytes[first : first + (stop_row - start_row) * columns * dtype.itemsize]
        return data.view(dtype).reshape(stop_row - start_row, columns)

    def raw(self, name: str) -> np.ndarray:
        """A tensor as stored, a read-only view of the file; also of types that weights of few bits consist of.

        Raises:
            ModelLoadError: numpy has no such type.
        """
        tensor = self.tensors[name]
        dtype = READABLE.get(tensor.dtype) or _PARTS.get(tensor.dtype)
        if dtype is None:
            raise ModelLoadError(f"{self.path}: tensors of type {tensor.dtype} are not supported yet")
        return self._bytes[tensor.offset : tensor.offset + tensor.nbytes].view(dtype).reshape(tensor.shape)

    def close(self) -> None:
        """Let the file go; arrays that still view it keep the mapping alive until they are gone."""
        self._bytes = np.empty(0, np.uint8)
        try:
            self._map.close()
        except BufferError:
            return

    def _fail(self, problem: str) -> NoReturn:
        raise ModelLoadError(f"the safetensors file {self.path} is damaged: {problem}")

    def _header(self) -> dict[str, Any]:
        size = len(self._map)
        if size < 8:
            self._fail(f"it has only {size} bytes")
        length = int.from_bytes(self._map[:8], "little")
        if length > size - 8:
            self._fail(f"its header should have {length} bytes, but only {size - 8} follow")
        if length > _MAX_HEADER_BYTES:
            self._fail(f"its header has {length} bytes, more than the limit of {_MAX_HEADER_BYTES}")
        self._data_start = 8 + length
        raw = self._map[8 : 8 + length]
        # a tensor has three of these; counted first, because a parsed header takes thirty times its size
        if raw.count(b"{") + raw.count(b"[") > 3 * _MAX_TENSORS:
            self._fail(f"its header describes more than the limit of {_MAX_TENSORS} tensors")
        try:
            header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            self._fail(f"its header is not valid JSON ({str(error)[:80]})")
        if not isinstance(header, dict):
            self._fail("its header is not a JSON object")
        return header

    def _table(self, header: dict[str, Any]) -> dict[str, SafetensorsTensor]:
        table: dict[str, SafetensorsTensor] = {}
        for name, entry in header.items():
            if name != "__metadata__":
                table[name] = self._tensor(name, entry)
        end, previous = self._data_start, ""
        for tensor in sorted(table.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
            if tensor.offset < end:
                self._fail(f"the tensors {_short(previous)} and {_short(tensor.name)} overlap")
            end, previous = tensor.offset + tensor.nbytes, tensor.name
        return table

    def _tensor(self, name: str, entry: object) -> SafetensorsTensor:
        if not isinstance(entry, dict):
            self._fail(f"the entry of {_short(name)} is not a JSON object")
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in _BITS:
            self._fail(f"the tensor {_short(name)} has the unknown type {_short(dtype)}")
        if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
            self._fail(f"the tensor {_short(name)} has the impossible shape {_short(shape)}")
        if not _are_sizes(offsets) or len(offsets) != 2:
            self._fail(f"the tensor {_short(name)} has the impossible offsets {_short(offsets)}")
        (start, stop), available = offsets, len(self._map) - self._data_start
        if not start <= stop <= available:
            self._fail(f"the tensor {_short(name)} lies at {start} to {stop} of only {available} bytes")
        bits = math.prod(shape) * _BITS[dtype]
        if bits != (stop - start) * 8:
            self._fail(f"the tensor {_short(name)}, {dtype} of shape {shape}, has {stop - start} bytes")
        return SafetensorsTensor(name, tuple(shape), dtype, self._data_start + start, stop - start)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key appears twice")
    return entries


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
