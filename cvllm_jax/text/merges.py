"""Merges of BPE vocabularies that come without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

__all__ = ["merges_by_score"]

#: Squares of the lengths of all pieces, in characters: Gemma's 262,144 pieces have 10 million.
MAX_SPLITTING = 1 << 28


def merges_by_score(pieces: Mapping[str, int], scores: Sequence[float]) -> Iterator[tuple[str, str]]:
    """Every way to make a piece from two others, the highest score first.

    SentencePiece and tiktoken merge whichever neighbours form the piece of the highest score; tiktoken's is the
    lowest rank.

    Arguments:
        pieces: ids by their text.
        scores: by id.

    Raises:
        ValueError: pieces are so long that their parts would take minutes to find.
    """
    if sum(len(piece) ** 2 for piece in pieces) > MAX_SPLITTING:
        raise ValueError(f"it has pieces of up to {max(map(len, pieces))} characters, too long to find their parts")
    return _merges(pieces, scores)


def _merges(pieces: Mapping[str, int], scores: Sequence[float]) -> Iterator[tuple[str, str]]:
    for piece in sorted(pieces, key=lambda text: (-scores[pieces[text]], pieces[text])):
        splits = [
            (pieces[left], pieces[right], left, right)
            for cut in range(1, len(piece))
            if (left := piece[:cut]) in pieces and (right := piece[cut:]) in pieces
        ]
        for _, _, left, right in sorted(splits):
            yield left, right
