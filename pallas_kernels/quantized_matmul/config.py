"""Settings of the Hopper kernels: what to tune without touching the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["HopperConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HopperConfig:
    """How a product is cut into thread blocks and pipeline stages; plain values, so that a choice can be stored.

    Attributes:
      block_k: input channels of a pipeline stage: 64 (for many rows only), 128 or 256.
      stages: stages in flight, 1 to 32.
      splits: parts that the input channels are cut into, each for thread blocks of their own; with more than one,
        partial sums in float32 go through memory.
      block_t: rows of ``x`` in a tile, 64, 128 or 256. For up to 64 rows there is one tile and this is not looked at.
      operand: where the tensor cores take the converted weights from. "registers" moves the fewest bytes; "shared"
        copies them through shared memory, which Mosaic's interpreter needs.
    """

    block_k: int
    stages: int
    splits: int = 1
    block_t: int = 128
    operand: Literal["registers", "shared"] = "registers"

    def __post_init__(self) -> None:
        if self.block_k not in (64, 128, 256):
            raise ValueError(f"block_k must be 64, 128 or 256, not {self.block_k}")
        if not 1 <= self.stages <= 32:  # Mosaic has 32 barriers in an array
            raise ValueError(f"stages must be 1 to 32, not {self.stages}")
        if self.splits < 1:
            raise ValueError(f"splits must be at least 1, not {self.splits}")
        if self.block_t not in (64, 128, 256):
            raise ValueError(f"block_t must be 64, 128 or 256, not {self.block_t}")
        if self.operand not in ("registers", "shared"):
            raise ValueError(f'operand must be "registers" or "shared", not {self.operand!r}')
