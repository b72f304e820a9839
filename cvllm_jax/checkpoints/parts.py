"""Which rows of which tensors a weight is made of, and in what order they lie in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from cvllm_jax.checkpoints.checkpoint import Checkpoint
from cvllm_jax.checkpoints.mappings.rules import Interleaved, PerExpert, PerHead, Plus, Source, Stacked

__all__ = ["Part", "is_vector", "parts_of", "tensor_names"]

_LISTED = 3


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of the checkpoint and the rows of a weight that it fills."""

    tensor: str
    first: int
    rows: int
    heads: int = 0
    """Number of heads whose interleaved rows are put back into halves; 0: rows stay in order."""
    rotated: int = 0
    """The first so many rows of each of these heads are interleaved, the others stay in order."""
    plus: float = 0.0
    """What is added to every value."""
    run: int = 0
    """So many rows belong to one expert, and those of the next lie ``stride`` rows on; 0: all rows lie together."""
    stride: int = 0
    inputs: int = 0
    """Rows of each expert's matrix in the tensor where these are stored ``[in, out]``; 0: they are not."""

    def places(self, start: int, stop: int) -> slice | np.ndarray:
        """Where some of the rows go."""
        if not self.heads and not self.run:
            return slice(self.first + start, self.first + stop)
        order = self._half_order()[start:stop] if self.heads else np.arange(start, stop)
        if self.run:
            order = order // self.run * self.stride + order % self.run
        return self.first + order

    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> np.ndarray:
        """Some of the rows."""
        if not self.inputs:
            return checkpoint.read(self.tensor, start, stop)
        pieces = []
        while start < stop:
            expert, row = divmod(start, self.run)
            end = min(stop, (expert + 1) * self.run)
            matrix = checkpoint.read(self.tensor, expert * self.inputs, (expert + 1) * self.inputs)
            pieces.append(matrix[:, row : row + end - start].T)
            start = end
        return np.concatenate(pieces)

    def _half_order(self) -> np.ndarray:
        """Where each row of an interleaved tensor goes: a head's row 2j + s to s * R/2 + j; from R on they stay."""
        order = np.arange(self.rows).reshape(self.heads, -1)
        halves = order[:, : self.rotated].reshape(self.heads, 2, -1).transpose(0, 2, 1).reshape(self.heads, -1)
        return np.concatenate([halves, order[:, self.rotated :]], axis=1).reshape(-1)


def is_vector(name: str, shape: Sequence[int]) -> bool:
    """Whether a weight is one number for each output: a bias, also of several experts, or a gain."""
    return len(shape) == 1 or (len(shape) == 2 and name.endswith("_bias"))


def tensor_names(source: Source, layer: str, config: Mapping[str, Any], shape: Sequence[int]) -> list[str]:
    """The tensors that a source of a weight of this shape stands for in one layer."""
    name = (source if isinstance(source, str) else source.name).replace("{i}", layer)
    if isinstance(source, PerExpert):
        return [name.replace("{e}", str(expert)) for expert in range(shape[0])]
    if not isinstance(source, PerHead):
        return [name]
    heads = config.get(source.heads)
    return [name.replace("{h}", str(head)) for head in range(heads)] if isinstance(heads, int) else [name]


def parts_of(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], sources: Sequence[tuple[str, Source]]
) -> tuple[Part, ...]:
    """What a weight is made of.

    Arguments:
      sources: each tensor with the source that it belongs to.

    Raises:
      ValueError: what is wrong with the tensors.
    """
    for tensor, _ in sources:
        if not checkpoint.tensors[tensor].readable:
            raise ValueError(f"{tensor} of type {checkpoint.tensors[tensor].dtype}, which is not supported yet")
    vector = is_vector(name, shape)
    of_experts = len(shape) == (2 if vector else 3)
    parts = _by_expert(checkpoint, shape, vector, sources) if of_experts else _by_row(checkpoint, shape, sources)
    if parts is None:
        found = [f"{tensor} {list(checkpoint.tensors[tensor].shape)}" for tensor, _ in sources]
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise ValueError(f"{' + '.join(found[:_LISTED])}{more} for {name} {list(shape)}")
    return tuple(parts)


def _by_row(
    checkpoint: Checkpoint, shape: tuple[int, ...], sources: Sequence[tuple[str, Source]]
) -> list[Part] | None:
    """Tensors one below another; None if they do not fit."""
    parts: list[Part] = []
    first = 0
    for tensor, source in sources:
        found = checkpoint.tensors[tensor].shape
        if isinstance(source, PerHead):
            found = (1, *found)
        if len(found) != len(shape) or found[1:] != shape[1:]:
            return None
        heads = rotated = 0
        if isinstance(source, Interleaved):
            heads, rotated = _interleaved(checkpoint, tensor, source)
        plus = source.amount if isinstance(source, Plus) else 0.0
        parts.append(Part(tensor, first, found[0], heads, rotated, plus))
        first += found[0]
    return parts if first == shape[0] else None


def _by_expert(
    checkpoint: Checkpoint, shape: tuple[int, ...], vector: bool, sources: Sequence[tuple[str, Source]]
) -> list[Part] | None:
    """The same rows of every expert, and then those of the next source; None if the tensors do not fit."""
    experts, stride, width = shape[0], shape[1], 1 if vector else shape[2]
    parts: list[Part] = []
    first = 0
    for source, group in groupby(sources, key=lambda pair: pair[1]):
        tensors = [tensor for tensor, _ in group]
        shapes = {checkpoint.tensors[tensor].shape for tensor in tensors}
        found = shapes.pop()
        if isinstance(source, PerExpert):
            if shapes or not found or found[1:] != shape[2:]:
                return None
            run = found[0]
            parts += [Part(tensor, expert * stride + first, run) for expert, tensor in enumerate(tensors)]
        else:
            stacked = source if isinstance(source, Stacked) else Stacked(tensors[0])
            run = math.prod(found) // (experts * width)
            if vector:
                fits = found == (experts, run)
            elif stacked.transposed:
                fits = found == (experts, width, run)
            else:
                fits = found in ((experts, run, width), (experts * run, width))
            if not fits:
                return None
            heads, rotated = (experts, run) if stacked.alternating else (0, 0)
            inputs = width if stacked.transposed else 0
            parts.append(Part(tensors[0], first, experts * run, heads, rotated, 0.0, run, stride, inputs))
        first += run
    return parts if first == stride else None


def _interleaved(checkpoint: Checkpoint, tensor: str, source: Interleaved) -> tuple[int, int]:
    """Heads of a tensor, and how many rows of each are interleaved."""
    rows, heads = checkpoint.tensors[tensor].shape[0], checkpoint.config.get(source.heads)
    if not isinstance(heads, int) or heads < 1:
        raise ValueError(f"{tensor}, whose rows cannot be ordered without {source.heads} in the configuration")
    rotated = int(rows // heads * _rotated_share(checkpoint.config, source))
    if rows % (2 * heads) or rotated % 2:
        raise ValueError(f"{tensor} [{rows}, ...], whose rows do not divide into {heads} heads")
    return heads, rotated


def _rotated_share(config: Mapping[str, Any], source: Interleaved) -> float:
    options = config.get("rope_parameters")
    for at in (options if isinstance(options, Mapping) else {}, config):
        if at.get("partial_rotary_factor") is not None:
            return float(at["partial_rotary_factor"])  # the model's configuration has been read, and checks it
    return source.rotated
