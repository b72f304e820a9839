"""Logits of every position of a text: for measuring quality, not for serving."""

from __future__ import annotations

from collections.abc import Sequence as Items
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cvllm_jax.engine.batch import PrefillLayout
from cvllm_jax.engine.engine import InferenceEngine
from cvllm_jax.engine.plan import PrefillBlock, SamplingSettings
from cvllm_jax.engine.runner import Runner

__all__ = ["prompt_logits"]

_SETTINGS = SamplingSettings(
    temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, frequency_penalty=0.0,
    presence_penalty=0.0, seed=(0, 0), logprobs=False, top_logprobs=False, tracks_tokens=False,
)  # fmt: skip


def prompt_logits(engine: InferenceEngine, tokens: Items[int], *, blocks: int = 4) -> Float[np.ndarray, "T V"]:
    """Logits after each token, in f32, by the same chunked prefill that serves requests, in a cache of its own.

    Arguments:
      tokens: at most the engine's ``max_sequence_length``.
      blocks: query blocks that one step takes.
    """
    runner = engine.runner
    limit = runner.settings.max_sequence_length
    if not 0 < len(tokens) <= limit:
        raise ValueError(f"from 1 to {limit} tokens can be scored, not {len(tokens)}")
    size, step_tokens = runner.settings.page_size, blocks * runner.settings.steps.query_block
    width = -(-len(tokens) // size)
    layout = PrefillLayout(blocks, runner.settings.steps.query_block, width, size, 0, runner.settings.kernels)
    cache = runner.new_cache(width + 1)
    program = jax.jit(partial(_score, runner, layout), donate_argnums=1)
    parts = []
    for start in range(0, len(tokens), step_tokens):
        chunk = tokens[start : start + step_tokens]
        packed = [
            PrefillBlock(
                slot=0, start=start + at, tokens=tuple(chunk[at : at + layout.block_size]),
                pages=tuple(range(1, width + 1)), choose=False, forbid_end=0, sampling=_SETTINGS,
            )
            for at in range(0, len(chunk), layout.block_size)
        ]  # fmt: skip
        cache, logits = program(runner.leaves, cache, jnp.asarray(layout.pack(packed)))
        parts.append(np.asarray(logits)[: len(chunk)])
    return np.concatenate(parts)


def _score(runner: Runner, layout: PrefillLayout, leaves: Any, cache: Any, vector: jax.Array) -> Any:
    tokens, batch, _, _ = layout.unpack(vector)
    model = runner.model(leaves)
    hidden, cache = model(tokens, cache, batch)
    return cache, model.logits(hidden)
