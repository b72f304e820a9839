"""What the model thinks of a given text: log probabilities of a prompt for requests, all logits for measuring quality.

Both run the chunked prefill that serves requests, on a cache of their own: neither the page pool nor the prefix cache
nor the serving loop takes part, and the device takes their steps between the loop's.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from cvllm_jax.checkpoints.cache import cache_dir
from cvllm_jax.engine.batch import PrefillLayout
from cvllm_jax.engine.pages import PageRun
from cvllm_jax.engine.plan import PrefillBlock, SamplingSettings
from cvllm_jax.engine.programs import Programs, environment_key
from cvllm_jax.engine.runner import Runner
from cvllm_jax.engine.xla_options import compiler_options
from cvllm_jax.errors import CancelledError, GenerationError
from cvllm_jax.params import MAX_TOP_LOGPROBS, TopLogprob

if TYPE_CHECKING:
    from cvllm_jax.engine.engine import InferenceEngine

__all__ = ["PromptLogprobs", "PromptScorer", "prompt_logits"]

_SETTINGS = SamplingSettings(
    temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, frequency_penalty=0.0,
    presence_penalty=0.0, seed=(0, 0), logprobs=False, top_logprobs=False, tracks_tokens=False,
)  # fmt: skip

#: A scorer's caches hold so many tokens, or four times as many, and so on up to the engine's longest sequence.
SMALLEST_CACHE = 512


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """For each token of a prompt but the first, which nothing comes before."""

    chosen: list[float]
    """Natural log probability of the token after those before it."""
    top: list[list[TopLogprob]]
    """The most likely tokens in its place, the likeliest first."""


class PromptScorer:
    """Log probabilities of prompts, one prompt at a time, in a thread beside the serving loop.

    It takes a prompt in small chunks and reduces each chunk's logits to a few numbers on the device, so memory does not
    grow with prompt times vocabulary, and running answers wait for one chunk at most. A program is compiled for each
    size of its cache (at most :func:`scoring_widths`) when a prompt first needs it, in its own thread, and kept on
    disk: most servers never score, and start faster without.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine
        runner = engine.runner
        device = runner.mesh.devices.flat[0]
        key = (
            f"{environment_key()}\n{device.platform} {device.device_kind}\n"
            f"{runner.config}\n{runner.settings}\n{[(leaf.shape, str(leaf.dtype)) for leaf in runner.leaves]}"
        )
        self._programs = Programs(key, cache_dir() / "executables" if engine.config.compilation_cache else None)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="cvllm-jax scoring")

    async def score(self, tokens: Items[int], top: int = 0) -> PromptLogprobs:
        """Score a prompt. Cancelling the task that waits ends the work after its current chunk.

        Arguments:
          tokens: at most the engine's ``max_sequence_length``.
          top: alternatives for each token, at most 20.

        Raises:
          GenerationError: the prompt is empty or too long, or the device has no memory left for its cache.
          CancelledError: the engine is closed.
        """
        gone = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, self._score, tokens, top, gone)
        finally:
            gone.set()

    def score_sync(self, tokens: Items[int], top: int = 0) -> PromptLogprobs:
        """:meth:`score` for callers without an event loop."""
        return self._worker.submit(self._score, tokens, top, threading.Event()).result()

    def _score(self, tokens: Items[int], top: int, gone: threading.Event) -> PromptLogprobs:
        runner, limit = self._engine.runner, self._engine.runner.settings.max_sequence_length
        if not 0 < len(tokens) <= limit:
            raise GenerationError(f"from 1 to {limit} tokens can be scored, not {len(tokens)}", param="prompt")
        leaves = runner.leaves
        if not leaves:
            raise CancelledError("the engine is closed")
        size = runner.settings.page_size
        width = next(width for width in scoring_widths(limit, size) if width * size >= len(tokens))
        layout = _layout(runner, 1, width)
        targets = np.asarray([*tokens[1:], 0], np.int32)
        chosen: list[float] = []
        best: list[list[TopLogprob]] = []
        try:
            cache = runner.new_cache([width + 1] * len(runner.settings.groups), slots=1)
            program = self._program(runner, leaves, cache, layout)
            for start, vector in _chunks(layout, tokens):
                if gone.is_set():
                    raise CancelledError("nobody waits for these log probabilities any more")
                if not runner.leaves:
                    raise CancelledError("the engine was closed")
                wanted = np.zeros(layout.block_size, np.int32)
                wanted[: len(targets) - start] = targets[start : start + layout.block_size]
                cache, *found = program(leaves, cache, jnp.asarray(vector), jnp.asarray(wanted))
                own, values, likely = map(np.asarray, found)
                for row in range(min(layout.block_size, len(tokens) - 1 - start)):
                    chosen.append(float(own[row]))
                    best.append([TopLogprob(int(likely[row, i]), float(values[row, i])) for i in range(top)])
        except jax.errors.JaxRuntimeError as error:
            raise GenerationError(
                f"the device failed while it scored a prompt of {len(tokens)} tokens: {str(error).splitlines()[0]}"
            ) from error
        return PromptLogprobs(chosen, best)

    def _program(self, runner: Runner, leaves: Any, cache: Any, layout: PrefillLayout) -> Any:
        def build() -> Any:
            vector = jax.ShapeDtypeStruct((layout.size,), jnp.int32)
            wanted = jax.ShapeDtypeStruct((layout.block_size,), jnp.int32)
            step = partial(_logprobs, runner, layout)
            return jax.jit(step, donate_argnums=1).lower(leaves, cache, vector, wanted)

        options = compiler_options(runner.mesh.devices.flat[0], "prefill", enable_cuda_graph=False)
        return self._programs.get(f"score {layout.table_width}", build, options)


def scoring_widths(max_sequence_length: int, page_size: int) -> list[int]:
    """Sizes of a scorer's cache in pages."""
    most = -(-max_sequence_length // page_size)
    growing = (-(-SMALLEST_CACHE * 4**step // page_size) for step in range(math.ceil(math.log(max(2, most), 4)) + 1))
    return [*(width for width in growing if width < most), most]


def prompt_logits(
    engine: InferenceEngine, tokens: Items[int], *, blocks: int = 4, leaves: tuple[jax.Array, ...] | None = None
) -> Float[np.ndarray, "T V"]:
    """Logits after each token, in f32: for measuring quality, not for serving.

    Arguments:
      tokens: at most the engine's ``max_sequence_length``.
      blocks: query blocks that one step takes.
      leaves: weights to take in place of the runner's, in its order.
    """
    runner = engine.runner
    limit = runner.settings.max_sequence_length
    if not 0 < len(tokens) <= limit:
        raise ValueError(f"from 1 to {limit} tokens can be scored, not {len(tokens)}")
    width = -(-len(tokens) // runner.settings.page_size)
    layout = _layout(runner, blocks, width)
    cache = runner.new_cache([width + 1] * len(runner.settings.groups), slots=1)
    program = jax.jit(partial(_logits, runner, layout), donate_argnums=1)
    parts = []
    for start, vector in _chunks(layout, tokens):
        cache, logits = program(runner.leaves if leaves is None else leaves, cache, jnp.asarray(vector))
        parts.append(np.asarray(logits)[: len(tokens) - start])
    return np.concatenate(parts)


def _layout(runner: Runner, blocks: int, width: int) -> PrefillLayout:
    settings = runner.settings
    return PrefillLayout(
        blocks * settings.steps.query_block, blocks, settings.steps.query_block, len(settings.groups), width,
        settings.page_size, 0, settings.kernels,
    )  # fmt: skip


def _chunks(layout: PrefillLayout, tokens: Items[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Where each step's tokens begin, and its vector."""
    step_tokens = layout.tokens
    tables = (PageRun(0, tuple(range(1, layout.table_width + 1))),) * layout.groups
    for start in range(0, len(tokens), step_tokens):
        end = min(start + step_tokens, len(tokens))
        yield start, layout.pack(
            [
                PrefillBlock(
                    slot=0, start=at, tokens=tuple(tokens[at : min(at + layout.block_size, end)]), tables=tables,
                    choose=False, forbid_end=0, sampling=_SETTINGS,
                )
                for at in range(start, end, layout.block_size)
            ]
        )  # fmt: skip


def _logits(runner: Runner, layout: PrefillLayout, leaves: Any, cache: Any, vector: jax.Array) -> Any:
    tokens, batches, _, _ = layout.unpack(vector)
    model = runner.steps.model(leaves)
    hidden, cache = model(tokens, cache, batches)
    return cache, model.logits(hidden)


def _logprobs(
    runner: Runner, layout: PrefillLayout, leaves: Any, cache: Any, vector: jax.Array, wanted: jax.Array
) -> Any:
    """The cache; of each token in ``wanted`` its log probability; the largest ones in its place, and whose they are."""
    cache, logits = _logits(runner, layout, leaves, cache, vector)
    total = jax.nn.logsumexp(logits, axis=-1)
    own = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0] - total
    values, likely = lax.top_k(logits, min(MAX_TOP_LOGPROBS, logits.shape[-1]))
    return cache, own, values - total[:, None], likely
