"""Rotary position embedding (RoFormer, arXiv 2104.09864) and the ways checkpoints stretch it."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from cvllm_jax.errors import ModelLoadError

__all__ = ["Rope", "RopeTables"]

_MAX_HEAD_DIM = 1 << 13  # far above any model: a frequency is kept for every other dimension

SUPPORTED = ("default", "linear", "llama3", "yarn", "longrope", "factors")

#: Cosine and sine of every token's angles, in f32; R dimensions of a head are rotated.
type RopeTables = tuple[Float[Array, "T 1 R/2"], Float[Array, "T 1 R/2"]]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotation frequencies of half the dimensions that are rotated, in radians a position, and a factor on cosine and
    sine."""

    frequencies: tuple[float, ...]
    scale: float = 1.0

    @staticmethod
    def none(head_dim: int) -> Rope:
        """The rotation that changes nothing, for layers without positions."""
        return Rope((0.0,) * (head_dim // 2))

    @staticmethod
    def from_config(
        config: Mapping[str, Any], head_dim: int, *, theta: float = 10_000.0, partial: bool = False,
        supported: Collection[str] = SUPPORTED,
    ) -> Rope:  # fmt: skip
        """From ``rope_theta`` and ``rope_scaling``, or ``rope_parameters`` as transformers 5 writes them.

        Arguments:
          head_dim: dimensions of a head.
          theta: the base where the configuration names none.
          partial: whether the architecture can rotate a part of a head only (``partial_rotary_factor``).
          supported: the kinds of scaling that the architecture has.
        """
        options = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(options, Mapping):
            raise ModelLoadError(f"rope_scaling must be an object, not {options!r:.80}")
        kind = options.get("rope_type", options.get("type", "default")) or "default"
        theta = next((at["rope_theta"] for at in (options, config) if at.get("rope_theta") is not None), theta)
        if not _is_positive(theta):
            raise ModelLoadError(f"rope_theta must be a positive number, not {theta!r:.80}")
        kind = "longrope" if kind == "su" else kind  # its name in the first releases
        if kind not in supported:
            known = ", ".join(supported)
            raise ModelLoadError(f"rope_scaling of type {kind!r:.80} is not supported; supported are {known}")
        if head_dim > _MAX_HEAD_DIM:
            raise ModelLoadError(f"head_dim must be at most {_MAX_HEAD_DIM} to be rotated, not {head_dim}")
        if kind == "proportional":
            return _proportional(options, theta, head_dim)
        head_dim = _rotated(options, config, head_dim, partial)
        base = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        try:
            with np.errstate(divide="raise", invalid="raise", over="raise"):
                match kind:
                    case "default":
                        return Rope(_tuple(base))
                    case "linear":
                        return Rope(_tuple(base / _number(options, "factor")))
                    case "factors":
                        return Rope(_tuple(base / _factors(options, "factors", base.size)))
                    case "llama3":
                        return Rope(_tuple(_llama3(base, options)))
                    case "yarn":
                        return _yarn(base, options, theta, head_dim, config.get("max_position_embeddings"))
                    case _:
                        return _longrope(base, options, config)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ModelLoadError(f"rope_scaling of type {kind!r} is incomplete or malformed: {error}") from error

    def tables(self, positions: Int[Array, "T"]) -> RopeTables:
        """Cosine and sine of each position, with an axis for the heads."""
        angle = positions.astype(jnp.float32)[:, None, None] * jnp.asarray(self.frequencies, jnp.float32)
        # without the barrier XLA fuses the cosines into every layer and computes them again for every head
        return lax.optimization_barrier((jnp.cos(angle) * self.scale, jnp.sin(angle) * self.scale))


def _rotated(options: Mapping[str, Any], config: Mapping[str, Any], head_dim: int, partial: bool) -> int:
    """How many dimensions of a head are rotated."""
    named = (at["partial_rotary_factor"] for at in (options, config) if at.get("partial_rotary_factor") is not None)
    share = next(named, 1.0)
    if share != 1 and not partial:
        raise ModelLoadError(f"partial_rotary_factor {share} is not supported for this architecture; only 1.0 is")
    rotated = int(head_dim * share) if _is_positive(share) and share <= 1 else 0
    if rotated < 2 or rotated % 2:
        raise ModelLoadError(
            f"partial_rotary_factor must rotate an even number of {head_dim} dimensions, which {share!r:.80} does not"
        )
    return rotated


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _number(options: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = default if options.get(key) is None else options[key]
    if not _is_positive(value):
        raise ValueError(f"{key} must be a positive number, not {value!r:.80}")
    return float(value)  # type: ignore[arg-type]


def _factors(options: Mapping[str, Any], key: str, count: int) -> np.ndarray:
    factors = np.asarray(options.get(key), np.float64)
    if factors.shape != (count,) or not ((factors > 0) & (factors < math.inf)).all():
        raise ValueError(f"{key} must be {count} positive numbers")
    return factors


def _tuple(frequencies: np.ndarray) -> tuple[float, ...]:
    return tuple(frequencies.tolist())


def _proportional(options: Mapping[str, Any], theta: float, head_dim: int) -> Rope:
    """Gemma 4's: the frequencies of whole heads, of which only the first are in use, and the other dimensions stay."""
    share, factor = options.get("partial_rotary_factor", 1.0), options.get("factor", 1.0)
    if not _is_positive(share) or share > 1 or not _is_positive(factor):
        raise ModelLoadError(
            "rope_scaling of type 'proportional' needs a partial_rotary_factor up to 1 and a factor above 0, "
            f"not {share!r:.80} and {factor!r:.80}"
        )
    used = int(share * head_dim // 2)
    frequencies = theta ** -(np.arange(0, 2 * used, 2, dtype=np.float64) / head_dim) / factor
    return Rope((*_tuple(frequencies), *(0.0,) * (head_dim // 2 - used)))


def _llama3(base: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """Llama 3.1's rule: long waves are stretched, short ones kept, those between blended."""
    factor, original = _number(options, "factor"), _number(options, "original_max_position_embeddings")
    low, high = _number(options, "low_freq_factor"), _number(options, "high_freq_factor")
    blend = np.clip((original * base / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
    return (1 - blend) * base / factor + blend * base


def _yarn(base: np.ndarray, options: Mapping[str, Any], theta: float, head_dim: int, context: Any) -> Rope:
    """YaRN (arXiv 2309.00071): blend by the number of turns a wave makes over the original context."""
    original = _number(options, "original_max_position_embeddings", context)
    factor = _number(options, "factor", (context or original) / original)
    fast, slow = _number(options, "beta_fast", 32), _number(options, "beta_slow", 1)

    def dimension_of(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(fast), dimension_of(slow)
    if options.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    stretched = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)

    def magnitude(weight: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    mscale, mscale_all = options.get("mscale"), options.get("mscale_all_dim")
    own = magnitude(mscale) / magnitude(mscale_all) if mscale and mscale_all else magnitude()
    scale = _number(options, "attention_factor", own)
    return Rope(_tuple(stretched * base / factor + (1 - stretched) * base), scale)


def _longrope(base: np.ndarray, options: Mapping[str, Any], config: Mapping[str, Any]) -> Rope:
    """LongRoPE (arXiv 2402.13753): a divisor for each frequency, of two sets.

    Cached keys keep the rotation they were written with, so the set follows from the longest sequence that the engine
    takes (``max_sequence_length``) and not, as in transformers, from the length of each.
    """
    context = config.get("max_position_embeddings")
    original = _number(options, "original_max_position_embeddings", config.get("original_max_position_embeddings"))
    longest = config.get("max_sequence_length") or context or original
    long, short = (_factors(options, key, base.size) for key in ("long_factor", "short_factor"))
    factor = _number(options, "factor", (context or original) / original)
    own = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return Rope(_tuple(base / (long if longest > original else short)), _number(options, "attention_factor", own))
