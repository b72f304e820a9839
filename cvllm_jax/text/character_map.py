"""The table with which SentencePiece brings text into one form: full-width letters to plain ones, and the like."""

from __future__ import annotations

import numpy as np
from tokenizers import normalizers

__all__ = ["character_map"]

_LEAF, _VALUE = 1 << 8, 1 << 31


def character_map(table: bytes) -> normalizers.Precompiled:
    """The normalizer for ``precompiled_charsmap``.

    The table is a trie as a double array of 32-bit units, with its size in front, and the texts that its values point
    into. The library takes every index in it at its word, so all of them are checked here.

    Raises:
        ValueError: the table is cut off, or an index in it points outside.
    """
    size = int.from_bytes(table[:4], "little")
    texts = table[4 + size :]
    if len(table) < 4 or size % 4 or not 0 < size <= len(table) - 4:
        raise ValueError(f"the table of characters announces {size} bytes and has {max(0, len(table) - 4)}")
    units = np.frombuffer(table, "<u4", size // 4, 4)
    inner = (units < _VALUE) | (np.arange(len(units)) == 0)  # the others are values
    places = np.flatnonzero(inner)
    offsets = (units[inner].astype(np.int64) >> 10) << np.where(units[inner] & 0x200, 8, 0)
    children = places ^ offsets
    if (children | 0xFF).max() >= len(units):  # a child is found by adding any byte
        raise ValueError("an index in the table of characters points outside of it")
    values = (units[children[(units[inner] & _LEAF) != 0]] & (_VALUE - 1)).astype(np.int64)
    texts.decode("utf-8")
    starts = np.frombuffer(texts, np.uint8)
    if values.size and (values.max() >= len(texts) or np.any(starts[values] & 0xC0 == 0x80)):
        raise ValueError("a value in the table of characters points outside of its texts")
    return normalizers.Precompiled(table)
