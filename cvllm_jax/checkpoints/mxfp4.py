"""MXFP4 in Hugging Face folders, as gpt-oss has it (OCP Microscaling Formats 1.0).

Thirty-two numbers of a row share a power of two: ``NAME_blocks`` ``[..., rows, groups, 16]`` holds two numbers a byte,
the first in the low half, and ``NAME_scales`` ``[..., rows, groups]`` the exponents, 127 more than they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvllm_jax.checkpoints.folder import FolderWeights
from cvllm_jax.checkpoints.quantizing import METHODS, PackedRows, StoredLayout
from cvllm_jax.errors import ModelLoadError

__all__ = ["Mxfp4Folder", "Mxfp4Tensor"]

_BLOCKS, _SCALES = "_blocks", "_scales"
_BYTES = 16
_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_POSITIVE, *(-value for value in _POSITIVE)], np.float32)
#: Both numbers of each byte.
_PAIRS = np.stack([_VALUES[np.arange(256) & 15], _VALUES[np.arange(256) >> 4]], axis=1)


@dataclass(frozen=True, slots=True)
class Mxfp4Tensor:
    shape: tuple[int, ...]
    """Of the numbers: ``[..., rows, 32 * groups]``."""
    dtype: str = "MXFP4"


class Mxfp4Folder:
    """The tensors of a folder in which pairs of blocks and scales are one tensor, under the name of the blocks.

    Raises:
      ModelLoadError: blocks and scales do not go together.
    """

    method = "mxfp4"

    def __init__(self, weights: FolderWeights) -> None:
        self._weights = weights
        self.files = weights.files
        self.tensors: Mapping[str, Any] = self._paired(weights.tensors)

    @staticmethod
    def _paired(stored: Mapping[str, Any]) -> dict[str, Any]:
        tensors = dict(stored)
        for name, blocks in stored.items():
            if not name.endswith(_BLOCKS):
                continue
            partner = name.removesuffix(_BLOCKS) + _SCALES
            scales = tensors.pop(partner, None)
            if scales is None:
                raise ModelLoadError(f"{name[:80]} has no {partner[:80]} beside it")
            fits = blocks.dtype == scales.dtype == "U8" and blocks.shape == (*scales.shape, _BYTES)
            if not fits or len(scales.shape) < 2:
                found = f"{blocks.dtype}{list(blocks.shape)} and {scales.dtype}{list(scales.shape)}"
                raise ModelLoadError(f"{name[:80]} and its scales are {found}, which is no MXFP4")
            tensors[name] = Mxfp4Tensor((*scales.shape[:-1], scales.shape[-1] * 2 * _BYTES))
        return tensors

    def read(self, name: str, start_row: int = 0, stop_row: int | None = None) -> np.ndarray:
        """Rows as stored, or float32 where they are MXFP4."""
        tensor = self.tensors[name]
        if not isinstance(tensor, Mxfp4Tensor):
            rows: np.ndarray = self._weights.read(name, start_row, stop_row)
            return rows
        blocks, scales = self._stored(name, tensor, start_row, stop_row)
        numbers = _PAIRS[blocks].reshape(*scales.shape, 2 * _BYTES)
        return np.ldexp(numbers, scales[:, :, None].astype(np.int32) - 127).reshape(len(scales), -1)

    def packed(self, name: str, start_row: int, stop_row: int) -> PackedRows | None:
        """Rows as they are stored; None where they are no MXFP4."""
        tensor = self.tensors[name]
        if not isinstance(tensor, Mxfp4Tensor):
            return None
        blocks, scales = self._stored(name, tensor, start_row, stop_row)
        codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(len(scales), -1)
        return PackedRows(codes.view(METHODS["mxfp4"]), np.ldexp(np.float32(1), scales.astype(np.int32) - 127))

    def layout(self, name: str) -> StoredLayout | None:
        return StoredLayout("mxfp4", 2 * _BYTES) if isinstance(self.tensors[name], Mxfp4Tensor) else None

    def _stored(
        self, name: str, tensor: Mxfp4Tensor, start_row: int, stop_row: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The blocks and the exponents of some rows."""
        groups = tensor.shape[-1] // (2 * _BYTES)
        scales = self._weights.raw(name.removesuffix(_BLOCKS) + _SCALES).reshape(-1, groups)[start_row:stop_row]
        return self._weights.raw(name).reshape(-1, groups, _BYTES)[start_row:stop_row], scales

    def close(self) -> None:
        self._weights.close()
