"""Which sequences run in the next step: admission, chunked prefill, decoding, preemption. Pure Python, no arrays.

The scheduler may be a step ahead of what has been read back: ``plan`` is called for step t + 1 while the tokens that
step t chooses are still on the device, so it counts them as pending. ``commit`` takes them in the order of the plans.
"""

from __future__ import annotations

import bisect
import logging
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Items

from cvllm_jax.engine.pages import PageAllocator
from cvllm_jax.engine.paging import Paging, step_tokens
from cvllm_jax.engine.plan import Admission, DecodeRow, Plan, PrefillBlock, StepOutput, admission_of, settings_of
from cvllm_jax.engine.sequence import Sampled, Sequence, State
from cvllm_jax.engine.speculation import Speculation
from cvllm_jax.errors import Error
from cvllm_jax.params import FinishReason

__all__ = ["Scheduler"]

log = logging.getLogger("cvllm_jax.engine")

#: Tokens that a grammar leaves no choice about are appended at once from this many on: they cost a prefill block.
FEWEST_FORCED = 3


class Scheduler:
    """Owns the sequences, their slots and their pages.

    Arguments:
      pools: the pages of each cache group.
      slots: sequences that can run together.
      block: tokens of one sequence that prefill takes as a unit.
      prefill_budget: prompt tokens of one step, over all sequences.
      chunked: split prompts over steps; else a step takes at least one prompt whole, whatever the budget.
      decode_steps: steps that running sequences take in one go while nobody waits.
      drafts, rows: see :class:`cvllm_jax.engine.speculation.Speculation`.
      hash_root: distinguishes caches of other models and types.
    """

    def __init__(
        self, pools: Items[PageAllocator], *, slots: int, block: int, prefill_budget: int,
        chunked: bool = True, decode_steps: int = 1, drafts: int = 0, rows: Items[int] = (1,),
        hash_root: bytes = b"cvllm",
    ) -> None:  # fmt: skip
        step = step_tokens(block, prefill_budget, chunked=chunked, decode_steps=decode_steps)
        self.paging = Paging(pools, step=step, hash_root=hash_root)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._free_slots = list(range(slots - 1, -1, -1))
        self._block = block
        self._budget = prefill_budget
        self._chunked = chunked
        self._decode_steps = decode_steps
        self.speculation = Speculation(drafts, rows, self.paging)
        # of each plan those that decode (None: what the row chooses is void), choose after a prompt, and are prefilled
        self._in_flight: deque[tuple[list[Sequence | None], list[Sequence], list[Sequence]]] = deque()

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running or self._in_flight)

    @property
    def planned(self) -> bool:
        """Whether a plan is not committed yet."""
        return bool(self._in_flight)

    @property
    def waits_for_masks(self) -> bool:
        """Whether a running answer is constrained: its masks follow from its text."""
        return any(sequence.constraint is not None for sequence in self.running)

    @property
    def waits_for_tokens(self) -> bool:
        """Whether planning needs every token that is chosen, for masks or to draft what comes after it."""
        return self.waits_for_masks or self.speculation.waits(self.running)

    def add(self, sequence: Sequence) -> None:
        self.speculation.join(sequence)
        self._enqueue(sequence)
        self._append_forced(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a request in any state; its pages are free at once."""
        if sequence.state is not State.FINISHED:
            self._finish(sequence, FinishReason.Cancelled)

    # --- planning ---

    def plan(self, *, masks_follow: bool = False) -> Plan | None:
        """The next step, or None if there is nothing to do before a commit or a new request.

        Arguments:
          masks_follow: constrained sequences decode though their last token is not known yet; :meth:`masks` is called
            when it is, before the tokens of this plan are chosen.
        """
        preempted = self.preemptions
        self.paging.leave(self.running)
        steps = self._steps_in_one_go()
        decoding, decode = self._plan_decode(steps, masks_follow)
        admissions: list[Admission] = []
        prefilling: list[Sequence] = []
        blocks: list[PrefillBlock] = []
        for sequence, block in self._plan_prefill(admissions, may_admit=self.preemptions == preempted):
            blocks.append(block)
            prefilling.append(sequence)
        if not decode and not blocks:
            return None
        choosing = [s for s, block in zip(prefilling, blocks, strict=True) if block.choose]
        self._in_flight.append((decoding, choosing, prefilling))
        return Plan(admissions=tuple(admissions), decode=tuple(decode), decode_steps=steps, prefill=tuple(blocks))

    def _steps_in_one_go(self) -> int:
        """More than one only if nobody waits for a place, a prompt or pages meanwhile."""
        if self._decode_steps == 1 or self.waiting or not all(s.prefilled for s in self.running):
            return 1
        if self.waits_for_tokens:
            return 1
        wanted = [self.paging.missing(s, self._steps_of(s, self._decode_steps)) for s in self.running]
        return self._decode_steps if self.paging.fits([sum(each) for each in zip(*wanted, strict=True)]) else 1

    def _steps_of(self, sequence: Sequence, steps: int) -> int:
        return min(steps, sequence.max_tokens - sequence.num_generated)

    def _plan_decode(self, steps: int, masks_follow: bool) -> tuple[list[Sequence | None], list[DecodeRow]]:
        sequences: list[Sequence | None] = []
        rows: list[DecodeRow] = []
        room = self.speculation.room(len(self.running))
        for sequence in list(self.running):
            if sequence.state is not State.RUNNING or sequence.complete:
                continue
            if not sequence.prefilled:  # forced tokens may need pages, and what comes next behind a window
                self._grow(sequence)
                continue
            needs_mask = sequence.constraint is not None and not masks_follow
            if needs_mask and (sequence.pending or not self._constrain(sequence)):
                continue
            own_steps = self._steps_of(sequence, steps)
            if not self._grow(sequence, own_steps):
                continue
            drafts = self.speculation.draft(sequence, room) if room else ()
            room -= len(drafts)
            assert sequence.slot is not None
            rows.append(
                DecodeRow(
                    slot=sequence.slot,
                    position=sequence.computed,
                    steps=own_steps,
                    tables=tuple(table.run() for table in sequence.tables),
                    forbid_end=sequence.forbid_end,
                    sampling=settings_of(sequence),
                    mask=sequence.mask,
                    drafts=drafts,
                )
            )
            sequence.computed += own_steps + len(drafts)
            sequence.drafted = len(drafts)
            sequence.pending += own_steps
            sequences.append(sequence)
        return sequences, rows

    def _grow(self, sequence: Sequence, steps: int = 0) -> bool:
        """Give a running sequence the pages of its next step, or those of the youngest sequences if there are too few.

        False if it was the youngest itself.
        """
        while not self.paging.grow(sequence, steps):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _plan_prefill(self, admissions: list[Admission], *, may_admit: bool) -> Iterator[tuple[Sequence, PrefillBlock]]:
        """Blocks for prompts in order of arrival. None takes over half of what is left while others wait for a part."""
        budget = self._budget
        candidates = deque(s for s in self.running if not s.prefilled)
        behind: list[Sequence] = []
        while budget > 0:
            if candidates:
                sequence = candidates.popleft()
            elif may_admit and (admitted := self._admit_next(admissions)) is not None:
                sequence = admitted
            else:
                break
            limit = min(budget, max(self._block, budget // 2)) if self._chunked else len(sequence.tokens)
            for block in self._blocks(sequence, limit):
                budget -= len(block.tokens)
                yield sequence, block
            if not sequence.prefilled and sequence.state is State.RUNNING:
                behind.append(sequence)
        for sequence in behind:  # what the others left over
            for block in self._blocks(sequence, budget):
                budget -= len(block.tokens)
                yield sequence, block

    def masks(self) -> list[bytes | None]:
        """What the decode rows of the newest plan may choose; every plan before it is committed."""
        decoding = self._in_flight[-1][0]
        return [self._mask_of_row(decoding, index) for index in range(len(decoding))]

    def _mask_of_row(self, decoding: list[Sequence | None], index: int) -> bytes | None:
        sequence = decoding[index]
        if sequence is None or sequence.constraint is None or sequence.state is State.FINISHED:
            return None
        if sequence.state is State.RUNNING:
            sequence.pending -= 1  # the row itself, which forced text makes void
            if self._append_forced(sequence):
                decoding[index] = None
                return None
            sequence.pending += 1
        return sequence.mask if self._constrain(sequence) else None

    def _constrain(self, sequence: Sequence) -> bool:
        """Find what the answer may go on with; False if that ends the request."""
        assert sequence.constraint is not None
        try:
            sequence.mask = sequence.constraint.mask()
        except Error as error:
            self._finish(sequence, FinishReason.Error(str(error), error), error)
            return False
        return True

    def _blocks(self, sequence: Sequence, limit: int) -> Iterator[PrefillBlock]:
        """The next blocks of a prompt, at most ``limit`` tokens, and not more than there are pages for."""
        assert sequence.slot is not None
        limit = self.paging.reach(sequence, limit)
        while limit > 0 and not sequence.prefilled:
            start = sequence.computed
            stop = min(start + min(self._block, limit), len(sequence.tokens))
            choose = stop == len(sequence.tokens)
            if choose and sequence.constraint is not None and not self._constrain(sequence):
                return
            limit -= stop - start
            block = PrefillBlock(
                slot=sequence.slot,
                start=start,
                tokens=tuple(sequence.tokens[start:stop]),
                tables=self.paging.runs(sequence, stop),
                choose=choose,
                forbid_end=sequence.forbid_end,
                sampling=settings_of(sequence),
                mask=sequence.mask if choose else None,
            )
            sequence.computed = stop
            sequence.pending += choose
            sequence.prefilled = choose
            self.paging.register(sequence)
            yield block

    def _admit_next(self, admissions: list[Admission]) -> Sequence | None:
        """Move the first waiting sequence to a slot if one is free and pages for its known tokens are."""
        if not self._free_slots or not self.waiting:
            return None
        sequence = self.waiting[0]
        if sequence.pending:  # preempted with its last token still on the device
            return None
        if not self.paging.admit(sequence, self.running):
            return None
        del self.waiting[0]
        if not sequence.preempted:  # else its own pages would count
            sequence.cached_tokens = sequence.computed
        sequence.slot = self._free_slots.pop()
        sequence.state = State.RUNNING
        bisect.insort(self.running, sequence, key=_arrival)
        if sequence.tracks_tokens:
            admissions.append(admission_of(sequence))
        return sequence

    # --- what came back ---

    def commit(self, output: StepOutput) -> None:
        """Take the tokens of the oldest plan that is not committed. Tokens of ended requests are dropped."""
        decoding, choosing, _ = self._in_flight.popleft()
        for decoded, tokens in zip(decoding, output.decode, strict=True):
            if decoded is not None:
                if decoded.drafted:
                    self.speculation.keep(decoded, len(tokens))
                for sampled in tokens:
                    self._take(decoded, sampled)
        for sequence, sampled in zip(choosing, output.prefill, strict=True):
            self._take(sequence, sampled)

    def _take(self, sequence: Sequence, sampled: Sampled) -> None:
        if sequence.state is State.FINISHED:
            return
        sequence.pending -= 1
        if not self._append(sequence, sampled):
            return
        if sequence.state is State.RUNNING:
            self.paging.register(sequence)
        self._append_forced(sequence)

    def _append(self, sequence: Sequence, sampled: Sampled) -> bool:
        """Add a token to an answer; False if that ends the request."""
        try:
            reason = sequence.append(sampled)
        except Exception as error:  # a token that the tokenizer cannot turn into text ends its own request only
            if not isinstance(error, Error):
                log.exception("request %d fails: its tokens have no text", sequence.handle.id)
            self._finish(sequence, FinishReason.Error(str(error), error), error)
            return False
        if reason is not None:
            self._finish(sequence, reason)
        return reason is None

    def _append_forced(self, sequence: Sequence) -> bool:
        """Append what a grammar leaves no choice about, for one prefill block to compute; whether anything changed."""
        if sequence.constraint is None or sequence.pending:
            return False
        try:
            forced = sequence.forced()
        except Error as error:
            self._finish(sequence, FinishReason.Error(str(error), error), error)
            return True
        if len(forced) < FEWEST_FORCED:
            return False
        sequence.prefilled = False
        for token in forced:
            if not self._append(sequence, Sampled(token)):
                break
        return True

    def fail(self, error: Exception) -> None:
        """A step raised and the device's buffers are lost: its requests end, all others start over.

        The step that failed is the oldest one in flight; younger ones worked on its buffers.
        """
        failed = self._in_flight[0] if self._in_flight else ([], [], [])
        self._in_flight.clear()
        for sequence in dict.fromkeys((*failed[0], *failed[2])):
            if sequence is not None and sequence.state is not State.FINISHED:
                self._finish(sequence, FinishReason.Error(str(error), error), error)
        for sequence in self.waiting:
            sequence.pending = 0
        for sequence in list(self.running):
            sequence.pending = sequence.drafted = 0
            self._preempt(sequence)
        self.paging.forget()

    def end_all(self, reason: FinishReason) -> None:
        """End every request, as when the engine closes."""
        for sequence in [*self.running, *self.waiting]:
            self._finish(sequence, reason)

    # --- bookkeeping ---

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        sequence.preempted = True
        self._leave(sequence)
        sequence.state = State.WAITING
        self._enqueue(sequence)

    def _finish(self, sequence: Sequence, reason: FinishReason, error: Exception | None = None) -> None:
        if sequence.state is State.RUNNING:
            self.paging.register(sequence)
            self._leave(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.finish(reason, error)

    def _leave(self, sequence: Sequence) -> None:
        """Give up slot and pages. Steps in flight may still write there; the device runs later ones after them."""
        self.running.remove(sequence)
        assert sequence.slot is not None
        self._free_slots.append(sequence.slot)
        self.paging.release(sequence)
        sequence.slot = None
        sequence.prefilled = False

    def _enqueue(self, sequence: Sequence) -> None:
        """Waiting sequences stay in order of arrival, so one that was preempted comes before younger ones."""
        bisect.insort(self.waiting, sequence, key=_arrival)


def _arrival(sequence: Sequence) -> int:
    return sequence.handle.id
