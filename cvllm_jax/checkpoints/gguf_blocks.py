"""Quantised blocks of GGUF files as small numbers with a scale, and an offset, for every 32 columns; none is rounded.

The blocks: ggml-common.h and ggml-quants.c of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from cvllm_jax.checkpoints.quantizing import METHODS, PackedRows, StoredLayout

__all__ = ["UNPACK", "layout_of"]

_CENTRE = 8  # of the 16 numbers that four bits hold
_CENTRE_5 = 16  # of the 32 that five hold
_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def _q4_0(rows: np.ndarray) -> PackedRows:
    blocks = _blocks(rows, 18)
    return PackedRows(_centred(_nibbles(blocks[..., 2:])), _halves(blocks, 0))


def _q4_1(rows: np.ndarray) -> PackedRows:
    blocks = _blocks(rows, 20)
    scales = _halves(blocks, 0)
    return PackedRows(_centred(_nibbles(blocks[..., 4:])), scales, _halves(blocks, 2) + _CENTRE * scales)


def _q4_k(rows: np.ndarray) -> PackedRows:
    """Blocks of 256: eight scales and eight minima in 6 bits each, in units of their own."""
    blocks = _blocks(rows, 144)
    scaled, moved = _scales_of_k(blocks)
    values = _nibbles(blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32))
    return PackedRows(_centred(values), scaled, _CENTRE * scaled - moved)


def _q5_0(rows: np.ndarray) -> PackedRows:
    blocks = _blocks(rows, 22)
    return PackedRows(_five_bits(blocks[..., 6:], blocks[..., 2:6]), _halves(blocks, 0))


def _q5_1(rows: np.ndarray) -> PackedRows:
    blocks = _blocks(rows, 24)
    scales = _halves(blocks, 0)
    values = _five_bits(blocks[..., 8:], blocks[..., 4:8])
    return PackedRows(values, scales, _halves(blocks, 2) + _CENTRE_5 * scales)


def _q5_k(rows: np.ndarray) -> PackedRows:
    """As Q4_K, with a fifth bit: bit j of a byte belongs to the j-th 32 numbers of a block."""
    blocks = _blocks(rows, 176)
    scaled, moved = _scales_of_k(blocks)
    low = _nibbles(blocks[..., 48:].reshape(*blocks.shape[:2], 4, 32)).reshape(*blocks.shape[:2], 8, 32)
    fifth = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    values = (low | fifth << 4).astype(np.int8) - np.int8(_CENTRE_5)
    return PackedRows(values.reshape(len(rows), -1), scaled, _CENTRE_5 * scaled - moved)


def _q8_0(rows: np.ndarray) -> PackedRows:
    blocks = _blocks(rows, 34)
    return PackedRows(blocks[..., 2:].view(np.int8).reshape(len(rows), -1), _halves(blocks, 0))


def _iq4_nl(rows: np.ndarray) -> PackedRows:
    blocks = _blocks(rows, 18)
    return PackedRows(_IQ4[_nibbles(blocks[..., 2:])].reshape(len(rows), -1), _halves(blocks, 0))


def _mxfp4(rows: np.ndarray) -> PackedRows:
    blocks = _blocks(rows, 17)
    values = _nibbles(blocks[..., 1:]).reshape(len(rows), -1).view(METHODS["mxfp4"])
    return PackedRows(values, np.ldexp(np.float32(1), blocks[..., 0].astype(np.int32) - 127))


#: By the name of a type, the function that unpacks rows of bytes, and the layout of what it gives.
UNPACK: Mapping[str, tuple[Callable[[np.ndarray], PackedRows], StoredLayout]] = {
    "Q4_0": (_q4_0, StoredLayout("int4", 32)),
    "Q4_1": (_q4_1, StoredLayout("int4", 32, offsets=True)),
    "Q4_K": (_q4_k, StoredLayout("int4", 32, offsets=True)),
    "Q5_0": (_q5_0, StoredLayout("int8", 32)),
    "Q5_1": (_q5_1, StoredLayout("int8", 32, offsets=True)),
    "Q5_K": (_q5_k, StoredLayout("int8", 32, offsets=True)),
    "Q8_0": (_q8_0, StoredLayout("int8", 32)),
    "IQ4_NL": (_iq4_nl, StoredLayout("int8", 32)),
    "MXFP4": (_mxfp4, StoredLayout("mxfp4", 32)),
}


def layout_of(kind: str) -> StoredLayout | None:
    """The layout for a type; int8 for those that have no packed form and are rounded; None for plain numbers."""
    if kind in UNPACK:
        return UNPACK[kind][1]
    return None if kind in ("F32", "F16", "BF16", "F64") else StoredLayout("int8", 32)


def _blocks(rows: np.ndarray, size: int) -> np.ndarray:
    return rows.reshape(len(rows), -1, size)


def _halves(blocks: np.ndarray, start: int) -> np.ndarray:
    """The float16 number at a place of each block, in float32."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")[..., 0].astype(np.float32)


def _scales_of_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima of Q4_K and Q5_K, for every 32 columns."""
    low, middle, high = (blocks[..., start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], -1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], -1)
    scaled = (_halves(blocks, 0)[..., None] * scales).reshape(len(blocks), -1)
    return scaled, (_halves(blocks, 2)[..., None] * minima).reshape(len(blocks), -1)


def _five_bits(low: np.ndarray, fifth: np.ndarray) -> np.ndarray:
    """Signed numbers of their low halves and, bit by bit in order, their fifth bits."""
    bits = np.unpackbits(fifth, axis=-1, bitorder="little")
    return ((_nibbles(low) | bits << 4).astype(np.int8) - np.int8(_CENTRE_5)).reshape(len(low), -1)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """The low halves of a block's bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], -1)


def _centred(values: np.ndarray) -> np.ndarray:
    centred: np.ndarray = (values.astype(np.int8) - np.int8(_CENTRE)).astype(ml_dtypes.int4)
    return centred.reshape(len(values), -1)
