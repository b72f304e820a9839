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
    forbid_end: int
    """So many of the next tokens may not end the answer."""
    sampling: SamplingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRow:
    """``steps`` steps of one sequence: its last token, which is on the device, goes to ``position``, and so on."""

    slot: int
    position: int
    steps: int
    pages: tuple[int, ...]
    """The sequence's block table, with room for every step."""
    forbid_end: int
    sampling: SamplingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    admissions: tuple[Admission, ...]
    decode: tuple[DecodeRow, ...]
    decode_steps: int
    """Steps that the decode rows take in one go; a row may take fewer."""
    prefill: tuple[PrefillBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What a plan's step chose."""

    decode: list[list[Sampled]]
    """The tokens of each row, one for each of its steps."""
    prefill: list[Sampled]
    """One token for each block that chooses."""
