"""Rounding weights to few bits while they are read, block by block, on the host.

The numbers are those of :func:`pallas_kernels.quantized_matmul.quantize`. Int4 with offsets is the exception: 16 values
are few, so the scale and offset of each group are searched for, those with the least squared error that are found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd
from typing import Any, Literal

import ml_dtypes
import numpy as np

__all__ = ["LARGEST", "METHODS", "PackedRows", "StoredLayout", "as_bytes", "fitted", "quantize_rows", "shared_layout"]

#: The type of each method's values.
METHODS: dict[str, np.dtype[Any]] = {
    "int8": np.dtype(np.int8),
    "int4": np.dtype(ml_dtypes.int4),
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
    "mxfp4": np.dtype(ml_dtypes.float4_e2m1fn),
}

#: The largest number of each type that stores values; ranges are symmetric without offsets.
LARGEST = dict(zip(METHODS.values(), (127.0, 7.0, 448.0, 6.0), strict=True))

#: Groups with fewer columns would cost more than they save, and kernels do none.
_LEAST_GROUP = 16

#: What a search for int4 cuts off each end of a group's range, in its steps. Every pair is tried, none cut off too: it
#: is what finds numbers again that have 16 values already.
_CUTS = (0.0, 0.5)

#: A search passes over its numbers some 30 times: so many stay in a processor's cache.
_SEARCHED_AT_ONCE = 1 << 17


@dataclass(frozen=True, slots=True)
class StoredLayout:
    """What quantised weights of a file fit into without rounding, or with hardly any."""

    method: Literal["int8", "int4", "fp8", "mxfp4"]
    group_size: int | None = None
    """Columns that share a scale; None: all of a row."""
    offsets: bool = False


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows of a quantised matrix: ``values * scales + offsets``, each scale and offset for a group of columns."""

    values: np.ndarray
    """``[rows, columns]``, of one of :data:`METHODS`."""
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
      stored: the type of the values, one of :data:`METHODS`.
      groups: parts of the columns with a scale of their own, a divisor of their number.
      offsets: have offsets: values of int4 are 16 steps where the group's numbers are, those of int8 its range.
      scale_dtype: what scales and offsets are stored in: values are rounded to these as they are stored.
    """
    count, columns = rows.shape
    grouped = rows.astype(np.float32, copy=False).reshape(count, groups, columns // groups)
    if offsets and stored == METHODS["int4"]:
        return _searched(grouped, scale_dtype)
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
    if stored in (METHODS["int8"], METHODS["int4"]):
        np.rint(scaled, out=scaled)
        scaled = scaled.astype(np.int8)
    return PackedRows(scaled.astype(stored, copy=False).reshape(count, columns), scales, moved)


def fitted(packed: PackedRows, stored: np.dtype[Any], groups: int, *, offsets: bool) -> PackedRows | None:
    """The same rows with more scales, offsets of 0, or int4 in int8; None where a layout cannot hold them."""
    values = packed.values
    if values.dtype == METHODS["int4"] and stored == METHODS["int8"]:
        values = values.astype(np.int8)
    if values.dtype != stored or groups % packed.scales.shape[1] or (packed.offsets is not None and not offsets):
        return None
    times = groups // packed.scales.shape[1]
    moved = np.zeros_like(packed.scales) if packed.offsets is None and offsets else packed.offsets
    return PackedRows(values, np.repeat(packed.scales, times, 1), None if moved is None else np.repeat(moved, times, 1))


def shared_layout(layouts: Iterable[StoredLayout | None], columns: int) -> StoredLayout | None:
    """The layout that keeps all rows of a weight whose tensors have these; None: it has to be plain numbers."""
    found = set(layouts)
    each = [layout for layout in found if layout is not None]
    methods = {layout.method for layout in each}
    if len(each) < len(found) or (len(methods) > 1 and methods != {"int4", "int8"}):
        return None
    size = gcd(*(layout.group_size or columns for layout in each))
    if size < min(columns, _LEAST_GROUP) or columns % size:
        return StoredLayout("int8")
    method: Any = "int8" if len(methods) > 1 else methods.pop()
    return StoredLayout(method, None if size == columns else size, any(layout.offsets for layout in each))


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Values in uint8; of 4 bits two in a byte, the even column's in the low half."""
    codes = values.view(np.uint8)
    if values.dtype.itemsize == 1 and values.dtype in (METHODS["int4"], METHODS["mxfp4"]):
        return (codes[:, 0::2] & 15) | (codes[:, 1::2] << 4)
    return codes


def _searched(grouped: np.ndarray, scale_dtype: Any) -> PackedRows:
    """Int4 with offsets for numbers ``[rows, groups, size]``."""
    count, groups, size = grouped.shape
    flat = grouped.reshape(-1, size)
    values = np.empty(flat.shape, METHODS["int4"])
    scales, offsets = np.empty((2, len(flat)), np.float32)
    step = max(1, _SEARCHED_AT_ONCE // size)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers near the largest float32: offsets are infinite or NaN
        for start in range(0, len(flat), step):
            part = slice(start, start + step)
            # a column a group: NumPy works on neighbours of the last axis
            numbers = np.ascontiguousarray(flat[part].T)
            scales[part], offsets[part] = _least_squares(numbers, scale_dtype)
            codes = _codes(numbers, scales[part], offsets[part])
            values[part] = codes.astype(np.int8).T
    return PackedRows(values.reshape(count, -1), scales.reshape(count, groups), offsets.reshape(count, groups))


def _least_squares(numbers: np.ndarray, scale_dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """For groups ``[size, groups]`` the scales and offsets, as they are stored, with the least squared error found.

    Several ranges give values of int4 to the numbers; for the values the best scale and offset are those of a linear
    regression, and the range whose regression leaves the least error is taken. Its values, then rounded anew, and their
    regression are the result.
    """
    least = numbers.min(0)
    step = (numbers.max(0) - least) / 15
    # in steps of the whole range, which goes from -8 to 7: sums neither overflow nor vanish
    scaled = (numbers - least) / np.where(step > 0, step, np.float32(1)) - 8
    total = scaled.sum(0)
    explained = np.full(len(step), -1, np.float32)
    scales, offsets = np.ones_like(step), np.zeros_like(step)
    for low in _CUTS:
        for high in _CUTS:
            scale = np.float32(1 - (low + high) / 15)
            found = _regression(_codes(scaled, scale, np.float32(low - 8) + 8 * scale), scaled, total)
            better = found[0] > explained
            for best, new in zip((explained, scales, offsets), found, strict=True):
                np.copyto(best, new, where=better)
    codes = _codes(scaled, np.where(scales > 0, scales, np.float32(1)), offsets)
    _, scales, offsets = _regression(codes, scaled, total)
    return _scales(scales * step, scale_dtype), _as_stored(least + step * (offsets + 8), scale_dtype)


def _codes(
    numbers: np.ndarray, scales: np.ndarray | np.float32, offsets: np.ndarray | np.float32
) -> np.ndarray:
    """The nearest values of int4, as float32."""
    codes = numbers - offsets
    codes *= 1 / scales
    np.rint(codes, out=codes)
    return np.clip(codes, -8, 7, out=codes)


def _regression(codes: np.ndarray, numbers: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each column what ``codes * scale + offset`` explains of the numbers' squared deviation; scale; offset."""
    size, of_codes = len(codes), codes.sum(0)
    variance = np.einsum("ng,ng->g", codes, codes) - of_codes * of_codes / size
    covariance = np.einsum("ng,ng->g", codes, numbers) - of_codes * total / size
    scales = covariance / np.where(variance > 0, variance, np.float32(1))
    return covariance * scales, scales, (total - scales * of_codes) / size


def _as_stored(numbers: np.ndarray, dtype: Any) -> np.ndarray:
    return numbers.astype(dtype).astype(np.float32)


def _scales(scales: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        scales = _as_stored(scales, dtype)
    # a group of equal numbers, or of numbers so small that their scale is 0
    return np.where(scales > 0, scales, np.float32(1))
