"""The compiled steps and the buffers they work on: the only part of the engine that touches the device."""

from __future__ import annotations

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
from cvllm_jax.engine.batch import AdmitLayout, DecodeLayout, PrefillLayout
from cvllm_jax.engine.devices import compiler_options, return_freed_memory
from cvllm_jax.engine.plan import DecodeRow, Plan, PrefillBlock, SamplingSettings, StepOutput
from cvllm_jax.engine.programs import Programs, environment_key
from cvllm_jax.engine.sampler import SamplerState, admit, empty_state, sample
from cvllm_jax.engine.sequence import Sampled
from cvllm_jax.models.layers import LayerCache
from cvllm_jax.models.registry import Model, ModelConfig
from cvllm_jax.params import MAX_TOP_LOGPROBS, TopLogprob

__all__ = ["DispatchedStep", "Runner", "RunnerSettings"]

#: Entries of logit_bias and end tokens that a slot has room for.
MAX_BIAS, MAX_END_TOKENS = 1024, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """Shapes of the runner's buffers and steps."""

    max_batch_size: int
    max_sequence_length: int
    page_size: int
    num_pages: int
    query_block: int
    """Prompt tokens of one sequence that prefill takes as a unit."""
    prefill_blocks: tuple[int, ...]
    """Sizes of prefill steps in blocks, ascending."""
    decode_rows: tuple[int, ...]
    """Sizes of decode steps in sequences, ascending."""
    cache_dtype: Any
    enable_cuda_graph: bool

    @property
    def table_width(self) -> int:
        return -(-self.max_sequence_length // self.page_size)


@dataclass(frozen=True, slots=True)
class DispatchedStep:
    """A step on its way: arrays that will hold its tokens, and how the host reads them."""

    decode: tuple[jax.Array, list[SamplingSettings]] | None
    prefill: list[tuple[jax.Array, list[tuple[int, SamplingSettings]]]]


class Runner:
    """Carries out plans.

    ``dispatch`` returns as soon as the device has its work queued; ``read`` waits for the tokens. Steps run on the
    device in the order in which they were dispatched.
    """

    def __init__(
        self, graph: nnx.GraphDef[Any], treedef: Any, leaves: tuple[jax.Array, ...], config: ModelConfig,
        settings: RunnerSettings, mesh: Mesh, *, store: Path | None, model_key: str,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.config = config
        self.mesh = mesh
        self._graph, self._treedef, self._leaves = graph, treedef, leaves
        self._replicated = NamedSharding(mesh, P())
        self._cache_sharding = NamedSharding(mesh, P(None, "tp"))
        device = mesh.devices.flat[0]
        key = f"{environment_key()}\n{device.platform} {device.device_kind}\n{model_key}\n{config}\n{settings}"
        self.programs = Programs(key, store)
        self._device = device
        self._decode_layouts = [
            DecodeLayout(rows, settings.table_width, settings.page_size, settings.max_batch_size)
            for rows in settings.decode_rows
        ]
        self._prefill_layouts = [
            PrefillLayout(
                blocks, settings.query_block, settings.table_width, settings.page_size, settings.max_batch_size
            )
            for blocks in settings.prefill_blocks
        ]
        self._admit_layout = AdmitLayout(settings.max_sequence_length, config.vocab_size, MAX_BIAS, MAX_END_TOKENS)
        self._cache: tuple[LayerCache, ...]
        self._state: SamplerState
        self.reset()

    def reset(self) -> None:
        """New, empty buffers: at the start, and after a step that raised."""
        self._cache = ()  # the old pages go before the new ones come
        self._cache = self.new_cache(self.settings.num_pages)
        state = empty_state(self.settings.max_batch_size + 1, self.config.vocab_size)
        self._state = jax.device_put(state, self._replicated)

    def new_cache(self, num_pages: int) -> tuple[LayerCache, ...]:
        """Zeroed pages for every layer."""
        c = self.config
        shape = (num_pages, c.num_key_value_heads, self.settings.page_size, c.head_dim)
        zeros = partial(jnp.zeros, shape, self.settings.cache_dtype, device=self._cache_sharding)
        return tuple((zeros(), zeros()) for _ in range(c.num_layers))

    def close(self) -> None:
        """Let go of weights, buffers and compiled steps, and give their memory back to the system."""
        self._leaves = self._cache = ()
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

    def _decode_step(self, layout: DecodeLayout) -> Callable[..., Any]:
        def decode(leaves: Any, cache: Any, state: SamplerState, vector: jax.Array) -> Any:
            batch, sampling = layout.unpack(vector)
            model = self.model(leaves)
            hidden, cache = model(state.last_token[sampling.slot], cache, batch)
            state, out = sample(model.logits(hidden), state, sampling)
            return cache, state, out

        return decode

    def _prefill_step(self, layout: PrefillLayout) -> Callable[..., Any]:
        def prefill(leaves: Any, cache: Any, state: SamplerState, vector: jax.Array) -> Any:
            tokens, batch, last, sampling = layout.unpack(vector)
            model = self.model(leaves)
            hidden, cache = model(tokens, cache, batch)
            state, out = sample(model.logits(hidden[last]), state, sampling)
            return cache, state, out

        return prefill

    def _admit_step(self, leaves: Any, cache: Any, state: SamplerState, vector: jax.Array) -> Any:
        return cache, admit(state, self._admit_layout.unpack(vector))

    def _program(self, kind: str, rows: int, step: Callable[..., Any], vector_size: int) -> Any:
        def build() -> Any:
            vector = jax.ShapeDtypeStruct((vector_size,), jnp.int32, sharding=self._replicated)
            return jax.jit(step, donate_argnums=(1, 2)).lower(self._leaves, self._cache, self._state, vector)

        options = compiler_options(self._device, kind, enable_cuda_graph=self.settings.enable_cuda_graph)
        return self.programs.get(f"{kind} {rows}", build, options)

    def _decode_program(self, layout: DecodeLayout) -> Any:
        return self._program("decode", layout.rows, self._decode_step(layout), layout.size)

    def _prefill_program(self, layout: PrefillLayout) -> Any:
        return self._program("prefill", layout.blocks, self._prefill_step(layout), layout.size)

    def _admit_program(self) -> Any:
        return self._program("admit", 1, self._admit_step, self._admit_layout.size)

    def warm_up(self, progress: Progress | None = None) -> None:
        """Compile or load every step and run each once, on padding."""
        total = len(self._prefill_layouts) + len(self._decode_layouts) + 1

        def report(done: int) -> None:
            if progress is not None:
                progress("compiling steps", done, total)

        report(0)
        for done, prefill in enumerate(self._prefill_layouts, 1):
            jax.block_until_ready(self._run(self._prefill_program(prefill), prefill.pack([])))
            report(done)
        for done, decode in enumerate(self._decode_layouts, 1 + len(self._prefill_layouts)):
            jax.block_until_ready(self._run(self._decode_program(decode), decode.pack([])))
            report(done)
        self._admit_program()
        report(total)

    def _run(self, program: Any, vector: np.ndarray) -> jax.Array:
        self._cache, self._state, out = program(
            self._leaves, self._cache, self._state, jax.device_put(vector, self._replicated)
        )
        return out

    # --- plans ---

    def dispatch(self, plan: Plan) -> DispatchedStep:
        """Queue a plan's work on the device."""
        for admission in plan.admissions:
            vector = jax.device_put(self._admit_layout.pack(admission), self._replicated)
            self._cache, self._state = self._admit_program()(self._leaves, self._cache, self._state, vector)
        return DispatchedStep(self._dispatch_decode(plan.decode), self._dispatch_prefill(plan.prefill))

    def _dispatch_decode(self, rows: tuple[DecodeRow, ...]) -> tuple[jax.Array, list[SamplingSettings]] | None:
        if not rows:
            return None
        layout = next(layout for layout in self._decode_layouts if layout.rows >= len(rows))
        out = self._run(self._decode_program(layout), layout.pack(rows))
        return out, [row.sampling for row in rows]

    def _dispatch_prefill(
        self, blocks: tuple[PrefillBlock, ...]
    ) -> list[tuple[jax.Array, list[tuple[int, SamplingSettings]]]]:
        """One program, or several where a prompt is taken whole and is longer than the largest."""
        dispatched = []
        largest = self._prefill_layouts[-1].blocks
        for first in range(0, len(blocks), largest):
            part = blocks[first : first + largest]
            layout = next(layout for layout in self._prefill_layouts if layout.blocks >= len(part))
            out = self._run(self._prefill_program(layout), layout.pack(part))
            dispatched.append((out, [(i, block.sampling) for i, block in enumerate(part) if block.choose]))
        return dispatched

    def read(self, step: DispatchedStep) -> StepOutput:
        """Wait for a step's tokens."""
        decode: list[Sampled] = []
        if step.decode is not None:
            out, settings = step.decode
            rows = np.asarray(out)
            decode = [_sampled(rows[i], s) for i, s in enumerate(settings)]
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
