"""The compiled steps and the buffers they work on: the only part of the engine that touches the device."""

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
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cvllm_jax.config import Progress
from cvllm_jax.engine.batch import AdmitLayout, DecodeLayout, PrefillLayout, pack_masks
from cvllm_jax.engine.devices import StepShapes, return_freed_memory
from cvllm_jax.engine.kernels import Geometry, empty_pages
from cvllm_jax.engine.plan import DecodeRow, Plan, PrefillBlock, SamplingSettings, StepOutput, check_plan
from cvllm_jax.engine.programs import Programs, environment_key
from cvllm_jax.engine.sampler import Form, SamplerState, admit, empty_state, sample
from cvllm_jax.engine.sequence import Sampled
from cvllm_jax.engine.xla_options import compiler_options
from cvllm_jax.models.layers import Kernels
from cvllm_jax.models.registry import Model, ModelConfig
from cvllm_jax.params import MAX_TOP_LOGPROBS, TopLogprob
from pallas_kernels.kv_write import KvPages

__all__ = ["DispatchedStep", "Runner", "RunnerSettings", "StartedStep"]

log = logging.getLogger("cvllm_jax.engine")

#: Entries of logit_bias and end tokens that a slot has room for.
MAX_BIAS, MAX_END_TOKENS = 1024, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """Shapes of the runner's buffers and steps."""

    max_batch_size: int
    max_sequence_length: int
    page_size: int
    num_pages: int
    steps: StepShapes
    geometry: Geometry
    kernels: Kernels
    enable_cuda_graph: bool

    @property
    def table_width(self) -> int:
        return -(-self.max_sequence_length // self.page_size)


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
        self._graph, self._treedef, self._leaves = graph, treedef, leaves
        self._replicated = NamedSharding(mesh, P())
        self._cache_sharding = NamedSharding(mesh, P(None, "tp"))
        device = mesh.devices.flat[0]
        key = f"{environment_key()}\n{device.platform} {device.device_kind}\n{model_key}\n{config}\n{settings}"
        self.programs = Programs(key, store)
        self._device = device
        self._autotune_cache = None if store is None else store.parent / "autotune"
        self._decode_layouts = [
            DecodeLayout(rows, settings.table_width, settings.page_size, settings.max_batch_size, settings.kernels)
            for rows in settings.steps.decode_rows
        ]
        self._prefill_layouts = [
            PrefillLayout(
                blocks,
                settings.steps.query_block,
                settings.table_width,
                settings.page_size,
                settings.max_batch_size,
                settings.kernels,
            )
            for blocks in settings.steps.prefill_blocks
        ]
        self._words = -(-config.vocab_size // 32)
        everything = partial(jnp.full, fill_value=0xFFFFFFFF, dtype=jnp.uint32, device=self._replicated)
        sizes = {*settings.steps.decode_rows, *settings.steps.prefill_blocks}
        self._unmasked = {rows: everything((rows, self._words)) for rows in sizes}
        self._admit_layout = AdmitLayout(settings.max_sequence_length, config.vocab_size, MAX_BIAS, MAX_END_TOKENS)
        self._cache: tuple[KvPages, ...]
        self._state: SamplerState
        self.reset()

    def reset(self) -> None:
        """New, empty buffers: at the start, and after a step that raised."""
        self._cache = ()  # the old pages go before the new ones come
        self._cache = self.new_cache(self.settings.num_pages)
        state = empty_state(self.settings.max_batch_size + 1, self.config.vocab_size)
        self._state = jax.device_put(state, self._replicated)

    def new_cache(self, num_pages: int) -> tuple[KvPages, ...]:
        """Zeroed pages for every layer."""
        zeros = partial(jnp.zeros, device=self._cache_sharding)
        return tuple(empty_pages(self.settings.geometry, num_pages, zeros) for _ in range(self.config.num_layers))

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

    def model(self, leaves: Items[jax.Array]) -> Model:
        """The model over these weights; for use inside a traced function."""
        return nnx.merge(self._graph, jax.tree.unflatten(self._treedef, leaves))

    @property
    def leaves(self) -> tuple[jax.Array, ...]:
        return self._leaves

    def _decode_step(self, layout: DecodeLayout, form: Form, steps: int) -> Callable[..., Any]:
        def decode(leaves: Any, cache: Any, state: SamplerState, vector: jax.Array, mask: jax.Array) -> Any:
            model = self.model(leaves)

            def step(ahead: jax.Array | int, cache: Any, state: SamplerState) -> Any:
                batch, sampling = layout.unpack(vector, ahead)
                hidden, cache = model(state.last_token[sampling.slot], cache, batch)
                state, out = sample(model.logits(hidden), state, sampling, mask, form=form)
                return cache, state, out

            if steps == 1:
                cache, state, out = step(0, cache, state)
                return cache, state, out[None]

            def body(carry: Any, ahead: jax.Array) -> Any:
                cache, state, out = step(ahead, *carry)
                return (cache, state), out

            (cache, state), out = lax.scan(body, (cache, state), jnp.arange(steps, dtype=jnp.int32))
            return cache, state, out

        return decode

    def _forward_step(self, layout: DecodeLayout) -> Callable[..., Any]:
        """The first half of a decode step: everything before the choice."""

        def forward(leaves: Any, cache: Any, state: SamplerState, vector: jax.Array) -> Any:
            batch, sampling = layout.unpack(vector)
            model = self.model(leaves)
            hidden, cache = model(state.last_token[sampling.slot], cache, batch)
            return cache, model.logits(hidden)

        return forward

    def _choose_step(self, layout: DecodeLayout) -> Callable[..., Any]:
        """The second half."""

        def choose(logits: jax.Array, state: SamplerState, vector: jax.Array, mask: jax.Array) -> Any:
            _, sampling = layout.unpack(vector)
            state, out = sample(logits, state, sampling, mask, form=self.settings.steps.decode_forms[-1])
            return state, out[None]

        return choose

    def _prefill_step(self, layout: PrefillLayout) -> Callable[..., Any]:
        def prefill(leaves: Any, cache: Any, state: SamplerState, vector: jax.Array, mask: jax.Array) -> Any:
            tokens, batch, last, sampling = layout.unpack(vector)
            model = self.model(leaves)
            hidden, cache = model(tokens, cache, batch)
            logits = model.logits(hidden[last])
            state, out = sample(logits, state, sampling, mask, form=self.settings.steps.prefill_form)
            return cache, state, out

        return prefill

    def _admit_step(self, leaves: Any, cache: Any, state: SamplerState, vector: jax.Array) -> Any:
        return cache, admit(state, self._admit_layout.unpack(vector))

    def _program(
        self, name: str, step: Callable[..., Any], vector_size: int, rows: int = 0, *, loops: bool = False
    ) -> Any:
        def build() -> Any:
            arrays = [self._struct((vector_size,), jnp.int32)]
            if rows:
                arrays.append(self._struct((rows, self._words), jnp.uint32))
            return jax.jit(step, donate_argnums=(1, 2)).lower(self._leaves, self._cache, self._state, *arrays)

        return self._compiled(name, build, loops=loops)

    def _forward_program(self, layout: DecodeLayout) -> Any:
        def build() -> Any:
            step = jax.jit(self._forward_step(layout), donate_argnums=1)
            return step.lower(self._leaves, self._cache, self._state, self._struct((layout.size,), jnp.int32))

        return self._compiled(f"forward {layout.rows}", build)

    def _choose_program(self, layout: DecodeLayout) -> Any:
        def build() -> Any:
            logits = self._struct((layout.rows, self.config.vocab_size), jnp.float32)
            arrays = self._struct((layout.size,), jnp.int32), self._struct((layout.rows, self._words), jnp.uint32)
            return jax.jit(self._choose_step(layout), donate_argnums=1).lower(logits, self._state, *arrays)

        return self._compiled(f"choose {layout.rows}", build)

    def _struct(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._replicated)

    def _compiled(self, name: str, build: Callable[[], Any], *, loops: bool = False) -> Any:

        options = compiler_options(
            self._device, name.split()[0], enable_cuda_graph=self.settings.enable_cuda_graph, loops=loops,
            autotune_cache=self._autotune_cache,
        )  # fmt: skip
        return self.programs.get(name, build, options)

    def _decode_program(self, layout: DecodeLayout, form: Form, steps: int) -> Any:
        name = f"decode {layout.rows}"
        if len(self.settings.steps.decode_forms) > 1:
            name += f" {form.value}"
        if steps > 1:
            name += f" x{steps}"
        return self._program(name, self._decode_step(layout, form, steps), layout.size, layout.rows, loops=steps > 1)

    def _prefill_program(self, layout: PrefillLayout) -> Any:
        return self._program(f"prefill {layout.blocks}", self._prefill_step(layout), layout.size, layout.blocks)

    def _admit_program(self) -> Any:
        return self._program("admit", self._admit_step, self._admit_layout.size)

    def prepare_halves(self) -> None:
        """Compile what :meth:`start` and :meth:`choose` run, in a thread, the first time that a grammar is asked for.

        Until it is done, steps with a grammar wait for each token. Most engines never see a grammar and start sooner.
        """
        if self._preparing is None:
            self._preparing = threading.Thread(target=self._compile_halves, name="cvllm-jax compiler", daemon=True)
            self._preparing.start()

    def _compile_halves(self) -> None:
        try:
            for layout in self._decode_layouts:
                for program in (self._forward_program, self._choose_program):
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
            (partial(self._prefill_program, layout), layout.pack([]), layout.blocks)
            for layout in self._prefill_layouts
        ]
        steps += [
            (partial(self._decode_program, layout, form, count), layout.pack([]), layout.rows)
            for layout in self._decode_layouts
            for form in shapes.decode_forms
            for count in shapes.decode_steps
        ]
        for done, (program, vector, rows) in enumerate(steps):
            if progress is not None:
                progress("compiling steps", done, len(steps) + 1)
            for _ in range(shapes.warm_up_runs):
                jax.block_until_ready(self._run(program(), vector, [], rows))
        self._admit_program()
        if progress is not None:
            progress("compiling steps", len(steps) + 1, len(steps) + 1)

    def _run(self, program: Any, vector: np.ndarray, masks: Items[bytes | None], rows: int) -> jax.Array:
        packed = pack_masks(masks, rows, self._words)
        mask = self._unmasked[rows] if packed is None else jax.device_put(packed, self._replicated)
        self._cache, self._state, out = program(
            self._leaves, self._cache, self._state, jax.device_put(vector, self._replicated), mask
        )
        return out

    # --- plans ---

    def dispatch(self, plan: Plan) -> DispatchedStep:
        """Queue a plan's work on the device."""
        if self.debug:
            check_plan(plan, self.settings.num_pages, self.settings.page_size, self.settings.max_batch_size)
        self._admit(plan)
        decode = self._dispatch_decode(plan.decode, plan.decode_steps)
        return DispatchedStep(decode, self._dispatch_prefill(plan.prefill))

    def _admit(self, plan: Plan) -> None:
        for admission in plan.admissions:
            vector = jax.device_put(self._admit_layout.pack(admission), self._replicated)
            self._cache, self._state = self._admit_program()(self._leaves, self._cache, self._state, vector)

    def start(self, plan: Plan) -> StartedStep:
        """Queue a plan's work as far as the choice of the tokens of its decode rows; :meth:`choose` is the rest."""
        if self.debug:
            check_plan(plan, self.settings.num_pages, self.settings.page_size, self.settings.max_batch_size)
        self._admit(plan)
        layout = self._layout_of(plan.decode)
        vector = jax.device_put(layout.pack(plan.decode), self._replicated)
        self._cache, logits = self._forward_program(layout)(self._leaves, self._cache, self._state, vector)
        return StartedStep(plan.decode, layout, vector, logits, self._dispatch_prefill(plan.prefill))

    def choose(self, started: StartedStep, masks: Items[bytes | None]) -> DispatchedStep:
        """Queue the rest of a step; ``masks`` say what each decode row may choose."""
        layout = started.layout
        packed = pack_masks(masks, layout.rows, self._words)
        mask = self._unmasked[layout.rows] if packed is None else jax.device_put(packed, self._replicated)
        self._state, out = self._choose_program(layout)(started.logits, self._state, started.vector, mask)
        return DispatchedStep((out, started.rows), started.prefill)

    def _layout_of(self, rows: tuple[DecodeRow, ...]) -> DecodeLayout:
        return next(layout for layout in self._decode_layouts if layout.rows >= len(rows))

    def _dispatch_decode(
        self, rows: tuple[DecodeRow, ...], steps: int
    ) -> tuple[jax.Array, tuple[DecodeRow, ...]] | None:
        if not rows:
            return None
        layout = self._layout_of(rows)
        forms = self.settings.steps.decode_forms
        form = next(form for form in forms if all(form.serves(row.sampling) for row in rows))
        masks = [row.mask for row in rows]
        return self._run(self._decode_program(layout, form, steps), layout.pack(rows), masks, layout.rows), rows

    def _dispatch_prefill(
        self, blocks: tuple[PrefillBlock, ...]
    ) -> list[tuple[jax.Array, list[tuple[int, SamplingSettings]]]]:
        """One program, or several where a prompt is taken whole and is longer than the largest."""
        dispatched = []
        largest = self._prefill_layouts[-1].blocks
        for first in range(0, len(blocks), largest):
            part = blocks[first : first + largest]
            layout = next(layout for layout in self._prefill_layouts if layout.blocks >= len(part))
            masks = [block.mask for block in part]
            out = self._run(self._prefill_program(layout), layout.pack(part), masks, layout.blocks)
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
