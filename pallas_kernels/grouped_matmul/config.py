"""Settings of the Hopper kernel: what to tune without touching the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HopperConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HopperConfig:
    """How a product is cut into thread blocks and pipeline stages.

    Attributes:
      block_t: rows of a tile: 8, 16, 32, 64 or 128. A tile has rows of one expert only.
      block_k: input channels of a pipeline stage: 64 or 128.
      stages: stages in flight, 2 to 32: one is multiplied while the one before it is let go.
    """

    block_t: int
    block_k: int
    stages: int

    def __post_init__(self) -> None:
        if self.block_t not in (8, 16, 32, 64, 128):
            raise ValueError(f"block_t must be 8, 16, 32, 64 or 128, not {self.block_t}")
        if self.block_k not in (64, 128):
            raise ValueError(f"block_k must be 64 or 128, not {self.block_k}")
        if not 2 <= self.stages <= 32:  # Mosaic has 32 barriers in an array
            raise ValueError(f"stages must be 2 to 32, not {self.stages}")
