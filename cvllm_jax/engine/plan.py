"""What one step does, in plain integers and tuples: made by the scheduler, carried out by the runner.

A plan can be pickled. Carrying it out depends on the plan and the device's buffers alone, so a recorded
run can be replayed.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvllm_jax.engine.sequence import Sampled

__all__ = ["Admission", "DecodeRow", "Plan", "PrefillBlock", "SamplingSettings", "StepOutput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How one sequence chooses its tokens. A draw depends on the seed and the position, and on nothing else."""

    temperature: float
    top_k: int  # 0: all tokens
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: tuple[int, int]
    logprobs: bool
    top_logprobs: bool
    tracks_tokens: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What the device must know of a sequence that enters a slot, if its tokens are tracked there."""

    slot: int
    tokens: tuple[int, ...]
    prompt_length: int
    bias: tuple[tuple[int, float], ...]
    end_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillBlock:
    """Consecutive known tokens of one sequence, at positions ``start`` onwards."""

    slot: int
    start: int
    tokens: tuple[int, ...]
    pages: tuple[int, ...]
    """The sequence's block table, as far as this block needs it."""
    choose: bool
    """Whether the block ends the known tokens, so that the next one is chosen."""
    forbid_end: bool
    sampling: SamplingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRow:
    """One step of one sequence: its last token, which is on the device, goes to ``position``."""

    slot: int
    position: int
    pages: tuple[int, ...]
    forbid_end: bool
    sampling: SamplingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    admissions: tuple[Admission, ...]
    decode: tuple[DecodeRow, ...]
    prefill: tuple[PrefillBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What a plan's step chose: one entry a decode row, and one a prefill block that chooses."""

    decode: list[Sampled]
    prefill: list[Sampled]
