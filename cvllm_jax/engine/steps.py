"""What the compiled steps compute, and where each is found by its size."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cvllm_jax.engine.batch import AdmitLayout, DecodeLayout, PrefillLayout
from cvllm_jax.engine.devices import StepShapes
from cvllm_jax.engine.kernels import Geometry
from cvllm_jax.engine.programs import Programs
from cvllm_jax.engine.sampler import Form, SamplerState, admit, next_tokens, sample
from cvllm_jax.engine.xla_options import compiler_options
from cvllm_jax.models.cache_groups import CacheGroup
from cvllm_jax.models.layers import Kernels
from cvllm_jax.models.registry import Model

__all__ = ["MAX_BIAS", "MAX_END_TOKENS", "RunnerSettings", "Steps"]

#: Entries of logit_bias and end tokens that a slot has room for.
MAX_BIAS, MAX_END_TOKENS = 1024, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """Shapes of the runner's buffers and steps."""

    max_batch_size: int
    max_sequence_length: int
    page_size: int
    groups: tuple[CacheGroup, ...]
    num_pages: tuple[int, ...]
    """Of each cache group, the padding page included."""
    steps: StepShapes
    geometry: Geometry
    kernels: Kernels
    enable_cuda_graph: bool

    @property
    def table_width(self) -> int:
        return -(-self.max_sequence_length // self.page_size)


class Steps:
    """The compiled steps of one model.

    Arguments:
      graph, treedef: the model's structure.
      vocab_size: length of a row of logits.
      programs: where compiled steps are kept.
      buffers: shapes, types and places of weights, cache and sampler state.
      autotune_cache: see :func:`cvllm_jax.engine.xla_options.compiler_options`.
    """

    def __init__(
        self, graph: nnx.GraphDef[Any], treedef: Any, vocab_size: int, settings: RunnerSettings, programs: Programs,
        buffers: tuple[Any, Any, SamplerState], *, autotune_cache: Path | None,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.programs = programs
        self.only_loaded = False
        """Whether a plan is cut to the sizes that are loaded, or waits for the one that fits."""
        self.words = -(-vocab_size // 32)
        """Words of a mask over the vocabulary."""
        self.decode_layouts = [
            DecodeLayout(
                rows,
                len(settings.groups),
                settings.table_width,
                settings.page_size,
                settings.max_batch_size,
                settings.kernels,
                settings.steps.drafts > 0,
            )
            for rows in settings.steps.decode_rows
        ]
        self.prefill_layouts = [
            PrefillLayout(
                size.tokens,
                size.blocks,
                settings.steps.query_block,
                len(settings.groups),
                settings.table_width,
                settings.page_size,
                settings.max_batch_size,
                settings.kernels,
            )
            for size in settings.steps.prefill
        ]
        self.admit_layout = AdmitLayout(settings.max_sequence_length, vocab_size, MAX_BIAS, MAX_END_TOKENS)
        self._graph, self._treedef, self._vocab_size = graph, treedef, vocab_size
        self._autotune_cache = autotune_cache
        self._buffers = buffers
        self._replicated = buffers[2].last_token.sharding

    def model(self, leaves: Items[jax.Array]) -> Model:
        """The model over these weights; for use inside a traced function."""
        return nnx.merge(self._graph, jax.tree.unflatten(self._treedef, leaves))

    # --- programs ---

    def decode(self, layout: DecodeLayout, form: Form, steps: int) -> Any:
        name = self._decode_name(layout, form, steps)
        return self._program(name, self._decode_step(layout, form, steps), layout.size, layout.rows, loops=steps > 1)

    def _decode_name(self, layout: DecodeLayout, form: Form, steps: int) -> str:
        name = f"decode {layout.rows}"
        if len(self.settings.steps.decode_forms) > 1:
            name += f" {form.value}"
        return name if steps == 1 else f"{name} x{steps}"

    def forward(self, layout: DecodeLayout) -> Any:
        def build() -> Any:
            step = jax.jit(self._forward_step(layout), donate_argnums=1)
            return step.lower(*self._buffers, self._struct((layout.size,), jnp.int32))

        return self._compiled(f"forward {layout.rows}", build)

    def choose(self, layout: DecodeLayout) -> Any:
        def build() -> Any:
            logits = self._struct((layout.rows, self._vocab_size), jnp.float32)
            arrays = self._struct((layout.size,), jnp.int32), self._struct((layout.rows, self.words), jnp.uint32)
            return jax.jit(self._choose_step(layout), donate_argnums=1).lower(logits, self._buffers[2], *arrays)

        return self._compiled(f"choose {layout.rows}", build)

    def prefill(self, layout: PrefillLayout) -> Any:
        return self._program(f"prefill {layout.tokens}", self._prefill_step(layout), layout.size, layout.blocks)

    def decode_layout(self, rows: int, form: Form, steps: int) -> DecodeLayout:
        """The smallest size that takes so many rows, or the largest there is."""
        layouts = [
            layout
            for layout in self.decode_layouts
            if not self.only_loaded or self._decode_name(layout, form, steps) in self.programs
        ]
        return next((layout for layout in layouts if layout.rows >= rows), layouts[-1])

    def prefill_layout(self, counts: Items[int]) -> PrefillLayout:
        """The step for blocks of prompts that have so many tokens, or for the first of them."""
        layouts = [
            layout
            for layout in self.prefill_layouts
            if not self.only_loaded or f"prefill {layout.tokens}" in self.programs
        ]
        smallest = layouts[0]
        runs = max(-(-sum(counts) // smallest.tokens), -(-len(counts) // smallest.blocks))
        whole = next((layout for layout in layouts if layout.takes(counts)), None)
        if whole is not None:
            padding = whole.tokens - whole.filled(counts)
            if padding <= self.settings.steps.most_padding * whole.tokens or whole.tokens <= runs * smallest.tokens:
                return whole
        return next((each for each in reversed(layouts) if each.filled(counts) == each.tokens), smallest)

    def admit(self) -> Any:
        return self._program("admit", self._admit_step, self.admit_layout.size)

    def _program(
        self, name: str, step: Callable[..., Any], vector_size: int, rows: int = 0, *, loops: bool = False
    ) -> Any:
        def build() -> Any:
            arrays = [self._struct((vector_size,), jnp.int32)]
            if rows:
                arrays.append(self._struct((rows, self.words), jnp.uint32))
            return jax.jit(step, donate_argnums=(1, 2)).lower(*self._buffers, *arrays)

        return self._compiled(name, build, loops=loops)

    def _compiled(self, name: str, build: Callable[[], Any], *, loops: bool = False) -> Any:
        options = compiler_options(
            next(iter(self._replicated.device_set)),
            name.split()[0],
            enable_cuda_graph=self.settings.enable_cuda_graph,
            loops=loops,
            autotune_cache=self._autotune_cache,
        )
        return self.programs.get(name, build, options)

    def _struct(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._replicated)

    # --- what they compute ---

    def _decode_step(self, layout: DecodeLayout, form: Form, steps: int) -> Callable[..., Any]:
        def decode(leaves: Any, cache: Any, state: SamplerState, vector: jax.Array, mask: jax.Array) -> Any:
            model = self.model(leaves)

            def step(ahead: jax.Array | int, cache: Any, state: SamplerState) -> Any:
                batches, sampling = layout.unpack(vector, ahead)
                hidden, cache = model(next_tokens(state, sampling), cache, batches)
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
            batches, sampling = layout.unpack(vector)
            model = self.model(leaves)
            hidden, cache = model(next_tokens(state, sampling), cache, batches)
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
            tokens, batches, last, sampling = layout.unpack(vector)
            model = self.model(leaves)
            hidden, cache = model(tokens, cache, batches)
            logits = model.logits(hidden[last])
            state, out = sample(logits, state, sampling, mask, form=self.settings.steps.prefill_form)
            return cache, state, out

        return prefill

    def _admit_step(self, leaves: Any, cache: Any, state: SamplerState, vector: jax.Array) -> Any:
        return cache, admit(state, self.admit_layout.unpack(vector))
