"""What a layer remembers of its sequences, as the operations on it take and return it."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float

__all__ = ["RecurrentState"]


class RecurrentState(NamedTuple):
    """What one layer remembers of the sequence in each of S slots; a pytree.

    A sequence that starts finds what the one before it left, so positions say when to begin with zeros.

    Attributes:
      inputs: the latest inputs of the convolution, the newest last.
      memory: of each head the sum of what values answer to keys, in float32.
    """

    inputs: Float[Array, "S W-1 C"]
    memory: Float[Array, "S N K V"]
