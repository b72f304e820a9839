"""The buffers that steps work on, and the plans carried out: the only part of the engine that touches the device."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cvllm_jax.config import Progress
from cvllm_jax.engine.batch import DecodeLayout, pack_masks
from cvllm_jax.engine.devices import cache_sharding, return_freed_memory
from cvllm_jax.engine.layer_caches import empty_caches
from cvllm_jax.engine.plan import DecodeRow, Plan, PrefillBlock, SamplingSettings, StepOutput, check_plan
from cvllm_jax.engine.sampler import SamplerState, empty_state
from cvllm_jax.engine.sequence import Sampled
from cvllm_jax.engine.steps import RunnerSettings, Steps
from cvllm_jax.engine.warm_up import WarmUp
from cvllm_jax.models.recurrent import LayerCache
from cvllm_jax.models.registry import ModelConfig
from cvllm_jax.params import MAX_TOP_LOGPROBS, TopLogprob

__all__ = ["DispatchedStep", "Runner", "StartedStep", "buffer_structs"]

log = logging.getLogger("cvllm_jax.engine")


@dataclass(frozen=True, slots=True)
class DispatchedStep:
    """A step on its way: arrays that will hold its tokens, and how the host reads them."""

    decode: list[tuple[jax.Array, tuple[DecodeRow, ...]]]
    prefill: list[tuple[jax.Array, list[tuple[int, SamplingSettings]]]]


@dataclass(frozen=True, slots=True)
class StartedStep:
    """A step whose decode rows have logits on their way and no tokens yet."""

    rows: tuple[DecodeRow, ...]
    layout: DecodeLayout
    vector: jax.Array
    logits: jax.Array
    prefill: list[tuple[jax.Array, list[tuple[int, SamplingSettings]]]]


class Runner:
    """Carries out plans.

    ``dispatch`` returns as soon as the device has its work queued; ``read`` waits for the tokens. Steps run on the
    device in the order in which they were dispatched.
    """

    def __init__(
        self, steps: Steps, leaves: tuple[jax.Array, ...], config: ModelConfig, mesh: Mesh, *, debug: bool = False
    ) -> None:
        self.steps = steps
        self.settings = settings = steps.settings
        self.programs = steps.programs
        self.debug = debug
        self.halves = False
        """Whether decode steps can be run in two halves, so that the host makes masks while the device works."""
        self._preparing: threading.Thread | None = None
        self._closed = False
        self.config = config
        self.mesh = mesh
        self._leaves = leaves
        self._replicated = NamedSharding(mesh, P())
        self._donating = threading.Lock()  # held while a step takes cache and state and gives them back
        slots = settings.max_batch_size + 1

        def empty_buffers() -> tuple[tuple[LayerCache, ...], SamplerState]:
            cache = empty_caches(config, settings.geometry, settings.num_pages, slots)
            return cache, empty_state(slots, config.vocab_size)

        # one program: array by array this takes four times as long
        self._empty_buffers = jax.jit(empty_buffers, out_shardings=(cache_sharding(mesh), self._replicated))
        self._cache: tuple[LayerCache, ...]
        self._state: SamplerState
        self.reset()
        self._warm_up = WarmUp(steps, self._run_padding)
        sizes = {*settings.steps.decode_rows, *(size.blocks for size in settings.steps.prefill)}
        masks = {rows: np.full((rows, self.steps.words), 0xFFFFFFFF, np.uint32) for rows in sizes}
        self._unmasked = jax.device_put(masks, self._replicated)

    def reset(self) -> None:
        """New, empty buffers: at the start, and after a step that raised."""
        with self._donating:
            self._cache = ()  # the old pages go before the new ones come
            self._cache, self._state = self._empty_buffers()

    def new_cache(self, num_pages: Items[int], slots: int) -> tuple[LayerCache, ...]:
        """Zeroed pages or places for every layer.

        Arguments:
          num_pages: of each cache group.
          slots: of recurrent layers.
        """
        zeros = partial(jnp.zeros, device=cache_sharding(self.mesh))
        return empty_caches(self.config, self.settings.geometry, num_pages, slots, zeros)

    def close(self) -> None:
        """Let go of weights, buffers and compiled steps, and give their memory back to the system."""
        self._closed = True
        self._warm_up.close()
        if self._preparing is not None:
            self._preparing.join()
        self._leaves = self._cache = ()
        self._unmasked = {}
        del self._state
        self.programs.clear()
        return_freed_memory()

    # --- steps ---

    @property
    def leaves(self) -> tuple[jax.Array, ...]:
        return self._leaves

    def prepare_halves(self) -> None:
        """Compile what :meth:`start` and :meth:`choose` run, in a thread, the first time that a grammar is asked for.

        Until it is done, steps with a grammar wait for each token. Most engines never see a grammar and start sooner.
        """
        if self._preparing is None:
            self._preparing = threading.Thread(target=self._compile_halves, name="cvllm-jax compiler", daemon=True)
            self._preparing.start()

    def _compile_halves(self) -> None:
        try:
            for layout in self.steps.decode_layouts:
                for program in (self.steps.forward, self.steps.choose):
                    if self._closed:
                        return
                    program(layout)
        except Exception as error:  # it is only an optimisation
            if not self._closed:
                log.warning("steps with a grammar go on without overlap: %s", error)
            return
        self.halves = True

    def warm_up(self, progress: Progress | None = None) -> None:
        """Load the steps that serve any request, and begin to load the others: see :class:`WarmUp`."""
        self._warm_up.start(progress)

    @property
    def warming_up(self) -> bool:
        """Whether a thread still loads steps."""
        return self._warm_up.loading

    def wait_until_warm(self, timeout: float | None = None) -> bool:
        """Wait until every listed step is loaded; False after ``timeout`` seconds."""
        return self._warm_up.wait(timeout)

    def _run_padding(self, program: Any, vector: np.ndarray, rows: int) -> jax.Array:
        return self._run(program, vector, [], rows)

    def _run(self, program: Any, vector: np.ndarray, masks: Items[bytes | None], rows: int) -> jax.Array:
        packed = pack_masks(masks, rows, self.steps.words)
        mask = self._unmasked[rows] if packed is None else jax.device_put(packed, self._replicated)
        arrays = jax.device_put(vector, self._replicated), mask
        with self._donating:
            self._cache, self._state, out = program(self._leaves, self._cache, self._state, *arrays)
        return out

    # --- plans ---

    def dispatch(self, plan: Plan) -> DispatchedStep:
        """Queue a plan's work on the device."""
        self._check(plan)
        self._admit(plan)
        decode = self._dispatch_decode(plan.decode, plan.decode_steps)
        return DispatchedStep(decode, self._dispatch_prefill(plan.prefill))

    def _check(self, plan: Plan) -> None:
        if self.debug:
            settings = self.settings
            windows = [group.window for group in settings.groups]
            pools = list(zip(settings.num_pages, windows, strict=True))
            check_plan(plan, pools, settings.page_size, settings.max_batch_size)

    def _admit(self, plan: Plan) -> None:
        for admission in plan.admissions:
            vector = jax.device_put(self.steps.admit_layout.pack(admission), self._replicated)
            program = self.steps.admit()
            with self._donating:
                self._cache, self._state = program(self._leaves, self._cache, self._state, vector)

    def start(self, plan: Plan) -> StartedStep:
        """Queue a plan's work as far as the choice of the tokens of its decode rows; :meth:`choose` is the rest."""
        self._check(plan)
        self._admit(plan)
        layout = next(layout for layout in self.steps.decode_layouts if layout.rows >= len(plan.decode))
        vector = jax.device_put(layout.pack(plan.decode), self._replicated)
        program = self.steps.forward(layout)
        with self._donating:
            self._cache, logits = program(self._leaves, self._cache, self._state, vector)
        return StartedStep(plan.decode, layout, vector, logits, self._dispatch_prefill(plan.prefill))

    def choose(self, started: StartedStep, masks: Items[bytes | None]) -> DispatchedStep:
        """Queue the rest of a step; ``masks`` say what each decode row may choose."""
        layout = started.layout
        packed = pack_masks(masks, layout.rows, self.steps.words)
        mask = self._unmasked[layout.rows] if packed is None else jax.device_put(packed, self._replicated)
        program = self.steps.choose(layout)
        with self._donating:
            self._state, out = program(started.logits, self._state, started.vector, mask)
        return DispatchedStep([(out, started.rows)], started.prefill)

    def _dispatch_decode(
        self, rows: tuple[DecodeRow, ...], steps: int
    ) -> list[tuple[jax.Array, tuple[DecodeRow, ...]]]:
        """One program, or several while only smaller ones are loaded."""
        dispatched = []
        while rows:
            forms = self.settings.steps.decode_forms
            form = next(form for form in forms if all(form.serves(row.sampling) for row in rows))
            drafts = sum([len(row.drafts) for row in rows])
            layout = self.steps.decode_layout(len(rows) + drafts, form, steps)
            part, rows = _first_rows(rows, layout.rows) if drafts else (rows[: layout.rows], rows[layout.rows :])
            masks = [row.mask for row in part for _ in range(1 + len(row.drafts))]
            out = self._run(self.steps.decode(layout, form, steps), layout.pack(part), masks, layout.rows)
            dispatched.append((out, part))
        return dispatched

    def _dispatch_prefill(
        self, blocks: tuple[PrefillBlock, ...]
    ) -> list[tuple[jax.Array, list[tuple[int, SamplingSettings]]]]:
        """One program, or several: less padding, or the prompts are longer than the largest that is loaded."""
        dispatched = []
        while blocks:
            layout = self.steps.prefill_layout([len(block.tokens) for block in blocks])
            part, blocks = layout.first_of(blocks)
            masks = [block.mask for block in part]
            out = self._run(self.steps.prefill(layout), layout.pack(part), masks, layout.blocks)
            dispatched.append((out, [(i, block.sampling) for i, block in enumerate(part) if block.choose]))
        return dispatched

    def read(self, step: DispatchedStep) -> StepOutput:
        """Wait for a step's tokens."""
        decode: list[list[Sampled]] = []
        for out, decoded in step.decode:
            chosen_rows = np.asarray(out)  # [steps, rows, C]
            index = 0
            for row in decoded:
                chosen = chosen_rows[: row.steps, index]
                if row.drafts:
                    chosen = _kept(chosen_rows[0, index : index + row.rows], row.drafts)
                decode.append([_sampled(each, row.sampling) for each in chosen])
                index += 1 + len(row.drafts)
        prefill = []
        for out, choosing in step.prefill:
            rows = np.asarray(out)
            prefill += [_sampled(rows[i], s) for i, s in choosing]
        return StepOutput(decode=decode, prefill=prefill)


def buffer_structs(
    config: ModelConfig, settings: RunnerSettings, mesh: Mesh
) -> tuple[tuple[LayerCache, ...], SamplerState]:
    """Shapes, types and places of the cache and the sampler's state, without their memory."""
    slots = settings.max_batch_size + 1
    on_cache, replicated = cache_sharding(mesh), NamedSharding(mesh, P())
    cache = empty_caches(
        config, settings.geometry, settings.num_pages, slots, partial(jax.ShapeDtypeStruct, sharding=on_cache)
    )
    state = jax.eval_shape(partial(empty_state, slots, config.vocab_size))
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state)
    return cache, placed


def _first_rows(rows: tuple[DecodeRow, ...], most: int) -> tuple[tuple[DecodeRow, ...], tuple[DecodeRow, ...]]:
    """As many sequences as a step of ``most`` rows takes, at least one, and the others."""
    if rows[0].rows > most:  # only smaller steps are loaded; drafts are guesses that nobody misses
        return (replace(rows[0], drafts=rows[0].drafts[: most - 1]),), rows[1:]
    ends = itertools.accumulate(row.rows for row in rows)
    count = sum(end <= most for end in ends)
    return rows[:count], rows[count:]


def _kept(chosen: np.ndarray, drafts: tuple[int, ...]) -> np.ndarray:
    """What was chosen up to the first draft that differs from what its position's draw gave."""
    wrong = (index for index, draft in enumerate(drafts) if chosen[index, 0] != draft)
    return chosen[: next(wrong, len(drafts)) + 1]


def _sampled(row: np.ndarray, settings: SamplingSettings) -> Sampled:
    """One row of what :func:`cvllm_jax.engine.sampler.sample` packs."""
    if not settings.logprobs:
        return Sampled(int(row[0]))
    floats, count = row.view(np.float32), (len(row) - 2) // 2
    top = None
    if settings.top_logprobs:
        top = [TopLogprob(int(row[2 + i]), float(floats[2 + count + i])) for i in range(min(count, MAX_TOP_LOGPROBS))]
    return Sampled(int(row[0]), float(floats[1]), top)
