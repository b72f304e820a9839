"""What one step does, in plain integers and tuples: made by the scheduler, carried out by the runner.

A plan can be pickled. Carrying it out depends on the plan and the device's buffers alone, so a recorded
run can be replayed.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial

from cvllm_jax.engine.pages import PADDING_PAGE, PageRun, first_page
from cvllm_jax.engine.sequence import Sampled, Sequence

__all__ = [
    "Admission",
    "DecodeRow",
    "Plan",
    "PrefillBlock",
    "SamplingSettings",
    "StepOutput",
    "admission_of",
    "check_plan",
    "settings_of",
]


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
    constrained: bool = False


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
    tables: tuple[PageRun, ...]
    """The sequence's pages in each cache group, as far as this block needs them."""
    choose: bool
    """Whether the block ends the known tokens, so that the next one is chosen."""
    forbid_end: int
    """So many of the next tokens may not end the answer."""
    sampling: SamplingSettings
    mask: bytes | None = None
    """The tokens that a constrained sequence may choose, a bit each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRow:
    """``steps`` steps of one sequence: its last token, which is on the device, goes to ``position``, and so on."""

    slot: int
    position: int
    steps: int
    tables: tuple[PageRun, ...]
    """The sequence's pages in each cache group, with room for every step."""
    forbid_end: int
    sampling: SamplingSettings
    mask: bytes | None = None
    drafts: tuple[int, ...] = ()
    """Guesses at the tokens after the last one. They go to the positions behind it in the same step, which chooses a
    token after each; those count as far as the guesses before them were right."""

    @property
    def rows(self) -> int:
        """Rows of a step that it takes."""
        return 1 + len(self.drafts)


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
    """The tokens of each row, one for each of its steps; or those up to the first draft that was wrong."""
    prefill: list[Sampled]
    """One token for each block that chooses."""


def settings_of(sequence: Sequence) -> SamplingSettings:
    """How a sequence chooses."""
    p = sequence.params
    return SamplingSettings(
        temperature=p.temperature,
        top_k=p.top_k or 0,
        top_p=p.top_p,
        min_p=p.min_p,
        repetition_penalty=p.repetition_penalty,
        frequency_penalty=p.frequency_penalty,
        presence_penalty=p.presence_penalty,
        seed=sequence.seed,
        logprobs=p.logprobs,
        top_logprobs=p.top_logprobs > 0,
        tracks_tokens=sequence.tracks_tokens,
        constrained=sequence.constraint is not None,
    )


def admission_of(sequence: Sequence) -> Admission:
    """What the device must know of a sequence that has been given a slot."""
    assert sequence.slot is not None
    return Admission(
        slot=sequence.slot,
        tokens=tuple(sequence.tokens),
        prompt_length=sequence.prompt_length,
        bias=tuple(sequence.params.logit_bias.items()),
        end_tokens=tuple(sorted(sequence.end_tokens)) if sequence.params.min_tokens else (),
    )


def check_plan(plan: Plan, pools: Items[tuple[int, int | None]], page_size: int, slots: int) -> None:
    """Raise a ValueError where a plan names what the buffers do not have: on the device that reads something else.

    Arguments:
      pools: of each cache group the pages, of which the first is padding and no sequence's, and the window.
    """
    check = partial(_check_places, pools=pools, page_size=page_size, slots=slots)
    for row in plan.decode:
        if not 1 <= row.steps <= plan.decode_steps:
            raise ValueError(f"slot {row.slot} takes {row.steps} steps of {plan.decode_steps}")
        if row.drafts and plan.decode_steps > 1:
            raise ValueError(f"slot {row.slot} has drafts in a plan of {plan.decode_steps} steps")
        check(f"slot {row.slot}", row.slot, row.tables, row.position, row.steps + len(row.drafts))
    for block in plan.prefill:
        name = f"the block of slot {block.slot} at {block.start}"
        check(name, block.slot, block.tables, block.start, len(block.tokens))
    taken = [row.slot for row in plan.decode] + [block.slot for block in plan.prefill if block.choose]
    if len(taken) != len(set(taken)):
        raise ValueError(f"a slot chooses twice in one step: {taken}")


def _check_places(
    name: str, slot: int, tables: tuple[PageRun, ...], start: int, count: int, *,
    pools: Items[tuple[int, int | None]], page_size: int, slots: int,
) -> None:  # fmt: skip
    if not 0 <= slot < slots:
        raise ValueError(f"{name}: there are slots 0 to {slots - 1}")
    if len(tables) != len(pools):
        raise ValueError(f"{name}: it has {len(tables)} block tables, and there are {len(pools)} cache groups")
    for (first, pages), (num_pages, window) in zip(tables, pools, strict=True):
        if outside := [page for page in pages if not PADDING_PAGE < page < num_pages]:
            raise ValueError(
                f"{name}: its block table names page {outside[0]}; the pool has pages 1 to {num_pages - 1}"
            )
        if first > first_page(start, window, page_size):
            raise ValueError(f"{name}: its pages begin at token {first * page_size}, after what it attends to")
        if start + count > (first + len(pages)) * page_size:
            raise ValueError(
                f"{name}: {first + len(pages)} pages of {page_size} tokens do not hold {start + count} tokens"
            )
