"""The buffers that steps work on, and the plans carried out: the only part of the engine that touches the device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cvllm_jax.config import Progress
from cvllm_jax.engine.batch import DecodeLayout, pack_masks
from cvllm_jax.engine.devices import return_freed_memory
from cvllm_jax.engine.layer_caches import empty_caches
from cvllm_jax.engine.plan import DecodeRow, Plan, PrefillBlock, SamplingSettings, StepOutput, check_plan
from cvllm_jax.engine.programs import Programs, environment_key
from cvllm_jax.engine.sampler import SamplerState, empty_state
from cvllm_jax.engine.sequence import Sampled
from cvllm_jax.engine.steps import RunnerSettings, Steps
from cvllm_jax.models.recurrent import LayerCache
from cvllm_jax.models.registry import ModelConfig
from cvllm_jax.params import MAX_TOP_LOGPROBS, TopLogprob

__all__ = ["DispatchedStep", "Runner", "StartedStep"]

log = logging.getLogger("cvllm_jax.engine")


@dataclass(frozen=True, slots=True)
class DispatchedStep:
    """A step on its way: arrays that will hold its tokens, and how the host reads them."""

    decode: tuple[jax.Array, tuple[DecodeRow, ...]] | None
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
        self, graph: nnx.GraphDef[Any], treedef: Any, leaves: tuple[jax.Array, ...], config: ModelConfig,
        settings: RunnerSettings, mesh: Mesh, *, store: Path | None, model_key: str,
        debug: bool = False,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.debug = debug
        self.halves = False
        """Whether decode steps can be run in two halves, so that the host makes masks while the device works."""
        self._preparing: threading.Thread | None = None
        self._closed = False
        self.config = config
        self.mesh = mesh
        self._leaves = leaves
        self._replicated = NamedSharding(mesh, P())
        self._cache_sharding = NamedSharding(mesh, P(None, "tp"))
        device = mesh.devices.flat[0]
        key = f"{environment_key()}\n{device.platform} {device.device_kind}\n{model_key}\n{config}\n{settings}"
        self.programs = Programs(key, store)
        self._cache: tuple[LayerCache, ...]
        self._state: SamplerState
        self.reset()
        self.steps = Steps(
            graph, treedef, config.vocab_size, settings, self.programs, (leaves, self._cache, self._state),
            autotune_cache=None if store is None else store.parent / "autotune",
        )  # fmt: skip
        everything = partial(jnp.full, fill_value=0xFFFFFFFF, dtype=jnp.uint32, device=self._replicated)
        sizes = {*settings.steps.decode_rows, *settings.steps.prefill_blocks}
        self._unmasked = {rows: everything((rows, self.steps.words)) for rows in sizes}

    def reset(self) -> None:
        """New, empty buffers: at the start, and after a step that raised."""
        self._cache = ()  # the old pages go before the new ones come
        self._cache = self.new_cache(self.settings.num_pages, self.settings.max_batch_size + 1)
        state = empty_state(self.settings.max_batch_size + 1, self.config.vocab_size)
        self._state = jax.device_put(state, self._replicated)

    def new_cache(self, num_pages: Items[int], slots: int) -> tuple[LayerCache, ...]:
        """Zeroed pages or places for every layer.

        Arguments:
          num_pages: of each cache group.
          slots: of recurrent layers.
        """
        zeros = partial(jnp.zeros, device=self._cache_sharding)
        return empty_caches(self.config, self.settings.geometry, num_pages, slots, zeros)

    def close(self) -> None:
        """Let go of weights, buffers and compiled steps, and give their memory back to the system."""
        self._closed = True
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
        """Compile or load every step and run each on padding, until a GPU has recorded it."""
        shapes = self.settings.steps
        steps: list[tuple[Callable[[], Any], np.ndarray, int]] = [
            (partial(self.steps.prefill, layout), layout.pack([]), layout.blocks)
            for layout in self.steps.prefill_layouts
        ]
        steps += [
            (partial(self.steps.decode, layout, form, count), layout.pack([]), layout.rows)
            for layout in self.steps.decode_layouts
            for form in shapes.decode_forms
            for count in shapes.decode_steps
        ]
        for done, (program, vector, rows) in enumerate(steps):
            if progress is not None:
                progress("compiling steps", done, len(steps) + 1)
            for _ in range(shapes.warm_up_runs):
                jax.block_until_ready(self._run(program(), vector, [], rows))
        self.steps.admit()
        if progress is not None:
            progress("compiling steps", len(steps) + 1, len(steps) + 1)

    def _run(self, program: Any, vector: np.ndarray, masks: Items[bytes | None], rows: int) -> jax.Array:
        packed = pack_masks(masks, rows, self.steps.words)
        mask = self._unmasked[rows] if packed is None else jax.device_put(packed, self._replicated)
        self._cache, self._state, out = program(
            self._leaves, self._cache, self._state, jax.device_put(vector, self._replicated), mask
        )
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
            self._cache, self._state = self.steps.admit()(self._leaves, self._cache, self._state, vector)

    def start(self, plan: Plan) -> StartedStep:
        """Queue a plan's work as far as the choice of the tokens of its decode rows; :meth:`choose` is the rest."""
        self._check(plan)
        self._admit(plan)
        layout = self._layout_of(plan.decode)
        vector = jax.device_put(layout.pack(plan.decode), self._replicated)
        self._cache, logits = self.steps.forward(layout)(self._leaves, self._cache, self._state, vector)
        return StartedStep(plan.decode, layout, vector, logits, self._dispatch_prefill(plan.prefill))

    def choose(self, started: StartedStep, masks: Items[bytes | None]) -> DispatchedStep:
        """Queue the rest of a step; ``masks`` say what each decode row may choose."""
        layout = started.layout
        packed = pack_masks(masks, layout.rows, self.steps.words)
        mask = self._unmasked[layout.rows] if packed is None else jax.device_put(packed, self._replicated)
        self._state, out = self.steps.choose(layout)(started.logits, self._state, started.vector, mask)
        return DispatchedStep((out, started.rows), started.prefill)

    def _layout_of(self, rows: tuple[DecodeRow, ...]) -> DecodeLayout:
        return next(layout for layout in self.steps.decode_layouts if layout.rows >= len(rows))

    def _dispatch_decode(
        self, rows: tuple[DecodeRow, ...], steps: int
    ) -> tuple[jax.Array, tuple[DecodeRow, ...]] | None:
        if not rows:
            return None
        layout = self._layout_of(rows)
        forms = self.settings.steps.decode_forms
        form = next(form for form in forms if all(form.serves(row.sampling) for row in rows))
        masks = [row.mask for row in rows]
        return self._run(self.steps.decode(layout, form, steps), layout.pack(rows), masks, layout.rows), rows

    def _dispatch_prefill(
        self, blocks: tuple[PrefillBlock, ...]
    ) -> list[tuple[jax.Array, list[tuple[int, SamplingSettings]]]]:
        """One program, or several where a prompt is taken whole and is longer than the largest."""
        dispatched = []
        largest = self.steps.prefill_layouts[-1].blocks
        for first in range(0, len(blocks), largest):
            part = blocks[first : first + largest]
            layout = next(layout for layout in self.steps.prefill_layouts if layout.blocks >= len(part))
            masks = [block.mask for block in part]
            out = self._run(self.steps.prefill(layout), layout.pack(part), masks, layout.blocks)
            dispatched.append((out, [(i, block.sampling) for i, block in enumerate(part) if block.choose]))
        return dispatched

    def read(self, step: DispatchedStep) -> StepOutput:
        """Wait for a step's tokens."""
        decode: list[list[Sampled]] = []
        if step.decode is not None:
            out, decoded = step.decode
            chosen_rows = np.asarray(out)  # [steps, rows, C]
            decode = [
                [_sampled(chosen_rows[ahead, index], row.sampling) for ahead in range(row.steps)]
                for index, row in enumerate(decoded)
            ]
        prefill = []
        for out, chosen in step.prefill:
            rows = np.asarray(out)
            prefill += [_sampled(rows[i], s) for i, s in chosen]
        return StepOutput(decode=decode, prefill=prefill)


def _sampled(row: np.ndarray, settings: SamplingSettings) -> Sampled:
    """One row of what :func:`cvllm_jax.engine.sampler.sample` packs."""
    if not settings.logprobs:
        return Sampled(int(row[0]))
    floats, count = row.view(np.float32), (len(row) - 2) // 2
    top = None
    if settings.top_logprobs:
        top = [TopLogprob(int(row[2 + i]), float(floats[2 + count + i])) for i in range(min(count, MAX_TOP_LOGPROBS))]
    return Sampled(int(row[0]), float(floats[1]), top)
