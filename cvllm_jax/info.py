"""What an engine says of its model and of its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["CacheGroupStats", "EngineStats", "ModelInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What was loaded."""

    name: str
    """The file's or folder's name, or the hub id."""
    architecture: str
    """The family, as the checkpoint names it."""
    parameters: int
    """Number of weights."""
    vocab_size: int
    """Rows of logits."""
    context_length: int
    """What the model was made for, in tokens."""
    max_sequence_length: int
    """What this engine accepts, prompt and answer together."""
    num_layers: int
    """Decoder layers."""
    hidden_size: int
    """Width of the residual stream."""
    num_attention_heads: int
    """Query heads of a layer."""
    num_key_value_heads: int
    """Heads of a layer's keys and values."""
    head_dim: int
    """Width of a head."""
    dtype: str
    """Type of activations and of weights that are not quantised."""
    quantization: str | None
    """How weights are kept in memory (``"int8"``, ``"int4"``, ``"fp8"``) where they are quantised there, else the
    quantised type that the checkpoint stores, such as ``"Q4_1"``; activations have ``dtype``."""
    device: str
    """Where it runs, such as ``cpu`` or ``cuda:0``."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end an answer."""
    generation_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Sampling settings that the model's own files recommend (generation_config.json)."""
    kind: Literal["causal", "encoder"] = "causal"
    """Whether the model generates text, or gives vectors of it (an EmbeddingEngine's)."""


@dataclass(frozen=True, slots=True)
class CacheGroupStats:
    """The pages of the layers that attend to the same latest positions."""

    window: int | None
    """How many positions; None for all."""
    pages_total: int
    """Pages of this group."""
    pages_free: int
    """Those that can be had at once."""
    pages_cached: int
    """Those that hold what prompts may share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of an engine's state and counters. Pages are summed over the cache groups."""

    running: int
    """Requests that have pages."""
    waiting: int
    """Requests in the queue."""
    pages_total: int
    """Pages of the cache."""
    pages_free: int
    """Pages that can be had at once: unused ones and cached ones that nobody holds."""
    pages_cached: int
    """Pages that hold what later prompts may share."""
    requests_completed: int
    """Requests that have ended, however."""
    prompt_tokens: int
    """Tokens of the prompts of ended requests."""
    generated_tokens: int
    """Tokens of the answers of ended requests."""
    cached_tokens: int
    """Prompt tokens served from the prefix cache since the start."""
    preemptions: int
    """How often a request was set aside for want of pages, to be computed again."""
    drafted_tokens: int
    """Tokens that were guessed, with ``num_speculative_tokens``."""
    accepted_tokens: int
    """Those of them that were right."""
    steps: int
    """Steps that the device has run."""
    compilations: int
    """Programs compiled or loaded since the start; constant after warm-up."""
    cache_groups: tuple[CacheGroupStats, ...] = ()
    """One for models whose layers are alike; where only some have windows, one for these and one for the others."""
