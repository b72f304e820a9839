"""Reading GGUF files (versions 2 and 3, little-endian).

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file is mapped; our own parser
reads its header, and ``gguf.quants`` turns quantised blocks into numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cvllm_jax.checkpoints.gguf_blocks import UNPACK, layout_of
from cvllm_jax.checkpoints.gguf_header import GgufTensor, HeaderReader, require_gguf
from cvllm_jax.checkpoints.mapped_file import map_file
from cvllm_jax.checkpoints.quantizing import PackedRows, StoredLayout
from cvllm_jax.closing import Closing
from cvllm_jax.errors import ModelLoadError

__all__ = ["GgufFile", "GgufTensor"]

# One call of gguf.quants handles this many numbers: its temporaries then stay in the processor's cache.
_DEQUANTIZE_NUMBERS = 1 << 16


class GgufFile(Closing):
    """A mapped GGUF file.

    Raises:
        ModelLoadError: the file is absent, truncated, inconsistent, or of a kind that is not supported.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    """Key to value: int, float, bool, str, or a list of one of these."""
    tensors: Mapping[str, GgufTensor]
    """By name, in the file's order."""
    data_start: int
    """Where tensor data begins, in bytes from the start of the file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map = map_file(self.path)
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        try:
            header = HeaderReader(self.path, self._map)
            self.version = header.version
            self.metadata = header.metadata()
            self.tensors = header.tensors(self.metadata)
            self.data_start = header.data_start
        except ModelLoadError:
            self.close()
            raise

    def header_digest(self) -> str:
        """SHA-256 of everything before the tensor data."""
        return hashlib.sha256(memoryview(self._map)[: self.data_start]).hexdigest()

    def read(self, name: str, start_row: int = 0, stop_row: int | None = None) -> np.ndarray:
        """Rows of a tensor as float32 ``[rows, in]``.

        All dimensions but the last count as rows; a one-dimensional tensor is one row. Unquantised
        float32 comes as a read-only view of the file.

        Raises:
            ModelLoadError: ``gguf.quants`` cannot dequantise the tensor's type.
        """
        tensor = self.tensors[name]
        stop_row = tensor.rows if stop_row is None else stop_row
        data = self._stored(tensor, start_row, stop_row)
        shape = (stop_row - start_row, tensor.shape[-1])
        match tensor.type.name:
            case "F32":
                return data.view("<f4").reshape(shape)
            case "F16":
                return data.view("<f2").astype(np.float32).reshape(shape)
            case "BF16":
                return data.view(ml_dtypes.bfloat16).astype(np.float32).reshape(shape)
        return _dequantize(data, tensor.type).reshape(shape)

    def packed(self, name: str, start_row: int, stop_row: int) -> PackedRows | None:
        """Rows of a tensor in groups of 32, exactly as the file has them; None if its type has no such form."""
        tensor = self.tensors[name]
        if tensor.type.name not in UNPACK:
            return None
        unpack, _ = UNPACK[tensor.type.name]
        return unpack(self._stored(tensor, start_row, stop_row).reshape(stop_row - start_row, -1))

    def layout(self, name: str) -> StoredLayout | None:
        """What keeps a tensor as it is, or nearly; None for plain numbers."""
        return layout_of(self.tensors[name].type.name)

    def _stored(self, tensor: GgufTensor, start_row: int, stop_row: int) -> np.ndarray:
        """The bytes of some rows."""
        if not 0 <= start_row <= stop_row <= tensor.rows:
            raise IndexError(f"rows {start_row} to {stop_row} of {tensor.name}, which has {tensor.rows}")
        row_bytes = tensor.nbytes // max(tensor.rows, 1)
        first = tensor.offset + start_row * row_bytes
        return self._bytes[first : first + (stop_row - start_row) * row_bytes]

    def close(self) -> None:
        """Let the file go; arrays that still view it keep the mapping alive until they are gone."""
        self._bytes = np.empty(0, np.uint8)
        try:
            self._map.close()
        except BufferError:
            return


def _dequantize(data: np.ndarray, kind: Any) -> np.ndarray:
    """Quantised blocks to a flat float32 array."""
    gguf = require_gguf()
    block_numbers, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    step = _DEQUANTIZE_NUMBERS // block_numbers * block_bytes
    out = np.empty(data.size // block_bytes * block_numbers, np.float32)
    per_step = step // block_bytes * block_numbers
    for index, start in enumerate(range(0, data.size, step)):
        # one long row a call: gguf.quants splits its argument by rows, and blocks know nothing of rows
        part = data[start : start + step].reshape(1, -1)
        try:
            numbers = gguf.quants.dequantize(part, kind)
        except NotImplementedError:
            raise ModelLoadError(f"tensors of the GGUF type {kind.name} are not supported yet") from None
        out[index * per_step : index * per_step + numbers.size] = numbers[0]
    return out
