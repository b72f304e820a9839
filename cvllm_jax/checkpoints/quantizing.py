"""Rounding weights to few bits while they are read, block by block, on the host.

The numbers are those of :func:`pallas_kernels.quantized_matmul.quantize`. With offsets all 16 values of int4 are used,
whatever the range of a group is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["LARGEST", "PackedRows", "fitted", "quantize_rows"]

_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)

#: The largest number of each type that stores values; ranges are symmetric without offsets.
LARGEST = {np.dtype(np.int8): 127.0, np.dtype(ml_dtypes.int4): 7.0, _FP8: 448.0}


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows of a quantised matrix: ``values * scales + offsets``, each scale and offset for a group of columns."""

    values: np.ndarray
    """``[rows, columns]``, int8, int4 or float8_e4m3fn."""
    scales: np.ndarray
    """``[rows, groups]``, float32."""
    offsets: np.ndarray | None = None
    """``[rows, groups]``, float32; None for none."""

    def numbers(self) -> np.ndarray:
        """What the rows stand for, in float32."""
        rows, groups = self.scales.shape
        grouped = self.values.astype(np.float32).reshape(rows, groups, -1) * self.scales[..., None]
        if self.offsets is not None:
            grouped += self.offsets[..., None]
        return grouped.reshape(rows, -1)


def quantize_rows(
    rows: np.ndarray, stored: np.dtype[Any], groups: int, *, offsets: bool, scale_dtype: Any
) -> PackedRows:
    """Round ``[rows, columns]`` to the nearest values of a layout.

    Arguments:
      stored: the type of the values: int8, int4 or float8_e4m3fn.
      groups: parts of the columns with a scale of their own, a divisor of their number.
      offsets: have offsets, and put the middle of int4's range where the middle of the group's is.
      scale_dtype: what scales and offsets are stored in: values are rounded to these as they are stored.
    """
    count, columns = rows.shape
    grouped = rows.astype(np.float32, copy=False).reshape(count, groups, columns // groups)
    moved = None
    low, high = -LARGEST[stored], LARGEST[stored]
    if offsets:
        least, most = grouped.min(-1), grouped.max(-1)
        low -= 1  # all values of the type are used
        scales = _scales((most - least) / (high - low), scale_dtype)
        moved = _as_stored(least - low * scales, scale_dtype)
        grouped = grouped - moved[..., None]
    else:
        scales = _scales(np.abs(grouped).max(-1) / high, scale_dtype)
    scaled = np.clip(grouped / scales[..., None], low, high)
    if stored != _FP8:
        np.rint(scaled, out=scaled)
        scaled = scaled.astype(np.int8)
    return PackedRows(scaled.astype(stored, copy=False).reshape(count, columns), scales, moved)


def fitted(packed: PackedRows, stored: np.dtype[Any], groups: int, *, offsets: bool) -> PackedRows | None:
    """The same rows with scales for more groups, or with offsets of 0; None where the layout cannot hold them."""
    if packed.values.dtype != stored or groups % packed.scales.shape[1] or (packed.offsets is not None and not offsets):
        return None
    times = groups // packed.scales.shape[1]
    moved = np.zeros_like(packed.scales) if packed.offsets is None and offsets else packed.offsets
    return PackedRows(
        packed.values, np.repeat(packed.scales, times, 1), None if moved is None else np.repeat(moved, times, 1)
    )


def _as_stored(numbers: np.ndarray, dtype: Any) -> np.ndarray:
    return numbers.astype(dtype).astype(np.float32)


def _scales(scales: np.ndarray, dtype: Any) -> np.ndarray:
    scales = _as_stored(scales, dtype)
    # a group of equal numbers, or of numbers so small that their scale is 0
    return np.where(scales > 0, scales, np.float32(1))
