"""The header of a GGUF file: metadata and tensor table.

Every count, length and offset is checked against the file's size, and against limits far above any
real model, before anything is allocated for it: model files come from strangers.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from cvllm_jax.errors import ModelLoadError

__all__ = ["GgufTensor", "HeaderReader", "require_gguf"]

_ARRAY, _STRING, _BOOL = 9, 8, 7
_NUMBERS: Final[Mapping[int, np.dtype[Any]]] = {
    0: np.dtype("u1"), 1: np.dtype("i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), _BOOL: np.dtype("u1"), 10: np.dtype("<u8"),
    11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip
_LENGTH = struct.Struct("<Q")
_MIN_ENTRY_BYTES = 8 + 4 + 1  # an empty key, a type, one byte of value
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # an empty name, dimension count, one dimension, type, offset
_MAX_ELEMENTS = 1 << 22  # of all arrays together; the largest vocabularies with their merges have 1.1 million
_MAX_HEADER_BYTES = 1 << 28
_MAX_COUNT = 1 << 16  # of metadata entries, of tensors, and of arrays within arrays
_MAX_NESTING = 4
_MAX_DIMENSIONS = 4  # GGML's own limit
_MAX_NAME_BYTES = 65_535
_MAX_ALIGNMENT = 1 << 20


def require_gguf() -> Any:
    """The ``gguf`` package, or one sentence that says how to get it."""
    try:
        import gguf
    except ImportError:
        raise ModelLoadError("reading GGUF files needs the package gguf: run `pip install gguf`") from None
    return gguf


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One entry of the tensor table."""

    name: str
    shape: tuple[int, ...]
    """In numpy's order, rows first: ``[out, in]``."""
    type: Any
    """A ``gguf.GGMLQuantizationType``."""
    offset: int
    """From the start of the file, in bytes."""
    nbytes: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])


class HeaderReader:
    """Walks the header once, from the magic to the end of the tensor table."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._size = path, data, len(data)
        self._end = min(self._size, _MAX_HEADER_BYTES)
        if data[:4] != b"GGUF":
            raise ModelLoadError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
        self._at = 4
        self.version = self._integer("<I")
        if self.version & 0xFFFF == 0 and self.version:
            raise ModelLoadError(f"{path} is a big-endian GGUF file; only little-endian ones are supported")
        if self.version not in (2, 3):
            raise ModelLoadError(f"{path} has GGUF version {self.version}; versions 2 and 3 are supported")
        self._tensor_count = self._integer("<Q")
        self._entry_count = self._integer("<Q")
        self._elements_left = _MAX_ELEMENTS
        self._arrays_left = _MAX_COUNT
        self.data_start = self.metadata_end = 0
        left = self._end - self._at
        for count, what, smallest in (
            (self._entry_count, "metadata entries", _MIN_ENTRY_BYTES),
            (self._tensor_count, "tensors", _MIN_TENSOR_BYTES),
        ):
            if count > min(left // smallest, _MAX_COUNT):
                self._fail(
                    f"it announces {count} {what}, more than its {self._size} bytes can hold or "
                    f"the limit of {_MAX_COUNT}"
                )

    def _fail(self, problem: str) -> NoReturn:
        raise ModelLoadError(f"the GGUF file {self._path} is damaged: {problem}")

    def _take(self, count: int, what: str) -> int:
        """The current position, after checking that ``count`` bytes follow it and stepping over them."""
        start = self._at
        if count > self._end - start:
            self._fail(
                f"{what} at byte {start} needs {count} bytes, but only {self._end - start} are left"
                + (f" of the {_MAX_HEADER_BYTES} a header may have" if self._end < self._size else "")
            )
        self._at = start + count
        return start

    def _integer(self, form: str) -> int:
        size = struct.calcsize(form)
        return int(struct.unpack_from(form, self._data, self._take(size, "a number"))[0])

    def _text(self, what: str, limit: int | None = None) -> str:
        length = self._integer("<Q")
        if limit is not None and length > limit:
            self._fail(f"{what} at byte {self._at} has {length} bytes, more than the limit of {limit}")
        start = self._take(length, what)
        try:
            return self._data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            self._fail(f"{what} at byte {start} is not valid UTF-8")

    def metadata(self) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for _ in range(self._entry_count):
            key = self._text("a metadata key", _MAX_NAME_BYTES)
            if key in entries:
                self._fail(f"the metadata key {_short(key)} appears twice")
            kind = self._integer("<I")
            entries[key] = self._value(kind, key, 0)
        self.metadata_end = self._at
        return entries

    def _value(self, kind: int, key: str, depth: int) -> Any:
        if kind == _STRING:
            return self._text(f"the value of {_short(key)}")
        if kind != _ARRAY:
            return self._numbers(kind, 1, key)[0]
        if depth == _MAX_NESTING:
            self._fail(f"the arrays of {_short(key)} are nested more than {_MAX_NESTING} deep")
        kind, count = self._integer("<I"), self._integer("<Q")
        if count > self._elements_left:
            self._fail(f"the array {_short(key)} of {count} elements goes over the limit of {_MAX_ELEMENTS}")
        self._elements_left -= count
        if kind in (_STRING, _ARRAY) and count > (self._end - self._at) // 8:
            self._fail(f"the array {_short(key)} has {count} items, more than the file can hold")
        if kind == _STRING:
            return self._strings(count, key)
        if kind == _ARRAY:
            self._arrays_left -= count
            if self._arrays_left < 0:
                self._fail(f"the array {_short(key)} goes over the limit of {_MAX_COUNT} arrays in arrays")
            return [self._value(_ARRAY, key, depth + 1) for _ in range(count)]
        return self._numbers(kind, count, key)

    def _numbers(self, kind: int, count: int, key: str) -> list[Any]:
        dtype = _NUMBERS.get(kind)
        if dtype is None:
            self._fail(f"the value of {_short(key)} has the unknown type {kind}")
        start = self._take(count * dtype.itemsize, f"the value of {_short(key)}")
        values = np.frombuffer(self._data, dtype, count, start)
        return (values != 0).tolist() if kind == _BOOL else values.tolist()

    def _strings(self, count: int, key: str) -> list[str]:
        """An array of strings; the loop is spelled out because a vocabulary has up to a million."""
        data, size, at, unpack = self._data, self._end, self._at, _LENGTH.unpack_from
        strings: list[str] = []
        try:
            for _ in range(count):
                if at > size - 8:
                    self._fail(f"the array {_short(key)} ends after {len(strings)} of {count} strings")
                (length,) = unpack(data, at)
                at += 8
                if length > size - at:
                    self._fail(f"string {len(strings)} of {_short(key)} has {length} bytes, past the end")
                strings.append(data[at : at + length].decode("utf-8"))
                at += length
        except UnicodeDecodeError:
            self._fail(f"string {len(strings)} of {_short(key)} is not valid UTF-8")
        self._at = at
        return strings

    def tensors(self, metadata: Mapping[str, Any]) -> dict[str, GgufTensor]:
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            self._fail(f"its alignment is {_short(alignment)}, not a power of two up to {_MAX_ALIGNMENT}")
        table: dict[str, GgufTensor] = {}
        for _ in range(self._tensor_count):
            tensor = self._tensor(alignment)
            if tensor.name in table:
                self._fail(f"the tensor {_short(tensor.name)} appears twice")
            table[tensor.name] = tensor
        self.data_start = start = -(-self._at // alignment) * alignment
        table = {
            name: GgufTensor(name, tensor.shape, tensor.type, tensor.offset + start, tensor.nbytes)
            for name, tensor in table.items()
        }
        end, previous = start, ""
        for tensor in sorted(table.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                self._fail(f"the tensors {_short(previous)} and {_short(tensor.name)} overlap")
            end, previous = tensor.offset + tensor.nbytes, tensor.name
            if end > self._size:
                self._fail(f"the tensor {_short(tensor.name)} ends at byte {end} of only {self._size}")
        self.data_start = min(start, self._size)
        return table

    def _tensor(self, alignment: int) -> GgufTensor:
        """One entry of the table, its offset still counted from the start of the data."""
        gguf = require_gguf()
        name = self._text("a tensor name", _MAX_NAME_BYTES)
        dimensions = self._integer("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            self._fail(f"the tensor {_short(name)} has {dimensions} dimensions, not 1 to {_MAX_DIMENSIONS}")
        sizes = [self._integer("<Q") for _ in range(dimensions)]
        number, offset = self._integer("<I"), self._integer("<Q")
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError:
            raise ModelLoadError(
                f"{self._path}: the tensor {_short(name)} has the type number {number}, "
                f"which this version of the gguf package does not know"
            ) from None
        block_numbers, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if min(sizes) < 1 or sizes[0] % block_numbers:
            self._fail(f"the tensor {_short(name)} of type {kind.name} cannot have the dimensions {sizes}")
        nbytes = math.prod(sizes) // block_numbers * block_bytes
        if nbytes > self._size or offset > self._size or offset % alignment:
            self._fail(
                f"the tensor {_short(name)} of {nbytes} bytes at offset {offset} does not fit the file's "
                f"{self._size} bytes and its alignment of {alignment}"
            )
        return GgufTensor(name, tuple(reversed(sizes)), kind, offset, nbytes)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
