"""Settings of the Hopper kernels: what to tune without touching the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HopperConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HopperConfig:
    """Block sizes of the Hopper kernels; how to cut sequences into pieces concerns decoding alone.

    Attributes:
      block_kv: tokens of a pipeline stage, 64 or 128. None takes what fits the kernel, the head dim and the cache.
      stages: stages in flight. None takes as many as shared memory has a use for.
      thread_blocks: thread blocks to cut the whole batch's work into, all kv heads together. The default is four for
        each of the 132 multiprocessors of an H100 SXM, which runs two at a time: the fewer turns there are, the
        more it weighs that the last one fills only some of them.
      min_tokens: shortest piece that a sequence is cut into, so that partial results stay few beside what they save.
    """

    block_kv: int | None = None
    stages: int | None = None
    thread_blocks: int = 528
    min_tokens: int = 128

    def __post_init__(self) -> None:
        if self.block_kv not in (None, 64, 128):
            raise ValueError(f"block_kv must be 64 or 128, not {self.block_kv}")
        if self.stages is not None and self.stages < 1:
            raise ValueError(f"stages must be at least 1, not {self.stages}")
        if self.thread_blocks < 1:
            raise ValueError(f"thread_blocks must be at least 1, not {self.thread_blocks}")
        if self.min_tokens < 1:
            raise ValueError(f"min_tokens must be at least 1, not {self.min_tokens}")
