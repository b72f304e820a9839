"""Quantised blocks of GGUF files as small numbers with a scale, and an offset, for every 32 columns; none is rounded.

The blocks: ggml-common.h and ggml-quants.c of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from cvllm_jax.checkpoints.quantizing import PackedRows

__all__ = ["UNPACK"]

_CENTRE = 8  # of the 16 numbers that four bits hold


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
    low, middle, high = (blocks[..., start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], -1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], -1)
    scaled = (_halves(blocks, 0)[..., None] * scales).reshape(len(rows), -1)
    moved = (_halves(blocks, 2)[..., None] * minima).reshape(len(rows), -1)
    values = _nibbles(blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32))
    return PackedRows(_centred(values), scaled, _CENTRE * scaled - moved)


def _q8_0(rows: np.ndarray) -> PackedRows:
    blocks = _blocks(rows, 34)
    return PackedRows(blocks[..., 2:].view(np.int8).reshape(len(rows), -1), _halves(blocks, 0))


#: By the name of a type, the function that unpacks rows of bytes.
UNPACK: Mapping[str, Callable[[np.ndarray], PackedRows]] = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k, "Q8_0": _q8_0}


def _blocks(rows: np.ndarray, size: int) -> np.ndarray:
    return rows.reshape(len(rows), -1, size)


def _halves(blocks: np.ndarray, start: int) -> np.ndarray:
    """The float16 number at a place of each block, in float32."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")[..., 0].astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """The low halves of a block's bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], -1)


def _centred(values: np.ndarray) -> np.ndarray:
    centred: np.ndarray = (values.astype(np.int8) - np.int8(_CENTRE)).astype(ml_dtypes.int4)
    return centred.reshape(len(values), -1)
