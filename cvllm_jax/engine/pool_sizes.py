"""How many pages each cache group gets, and how long a sequence they hold."""

from __future__ import annotations

import operator
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import jax

from cvllm_jax.config import EngineConfig
from cvllm_jax.engine.devices import StepShapes, available_memory
from cvllm_jax.engine.kernels import Geometry, empty_pages
from cvllm_jax.engine.pages import most_pages
from cvllm_jax.engine.paging import step_tokens
from cvllm_jax.errors import ConfigError, DeviceError
from cvllm_jax.models.registry import ModelConfig

__all__ = ["PoolShares", "page_bytes", "pages_for", "place_bytes"]

#: Share of the free memory that the page pools take when no size is given.
GPU_SHARE, CPU_SHARE = 0.9, 0.25
#: On a CPU the pools stop here: the memory belongs to the user's other programs too.
CPU_TOKENS = 32_768


def page_bytes(model: ModelConfig, geometry: Geometry) -> tuple[int, ...]:
    """Bytes of one page of each cache group, over its layers."""
    pages = jax.eval_shape(lambda: empty_pages(geometry, 1))
    layer = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(pages))
    return tuple(layer * len(group.layers) for group in model.cache_groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShares:
    """How memory is divided among cache groups.

    Attributes:
      bytes: of a page of each group.
      needs: for each group, the pages that a sequence of so many tokens holds at most.
      lengths: those that sequences may have, in even steps of ratio up to the longest that is accepted.
      slots: sequences that can run together.
      most: pages of each group past which more are of no use.
    """

    bytes: tuple[int, ...]
    needs: tuple[Callable[[int], int], ...]
    lengths: tuple[int, ...]
    slots: int
    most: tuple[int, ...]

    def fitting(self, pages: Items[float], length: int) -> float:
        """Sequences of one length that run together, as a fraction where it is less than one."""
        return min(self.slots, *(count / need(length) for count, need in zip(pages, self.needs, strict=True)))

    def _for(self, budget: int, length: int) -> list[float]:
        """The pages that go to each group where all sequences have one length."""
        needs = [need(length) for need in self.needs]
        return [need * budget / sum(map(operator.mul, self.bytes, needs)) for need in needs]

    def divide(self, budget: int, least: int) -> tuple[int, ...]:
        """Pages of each group in ``budget`` bytes, of which a sequence of ``least`` tokens finds enough.

        Sequences of one length fill the groups in one proportion, and lengths are not known beforehand. The division is
        that for one of the lengths: the one with which the number of sequences that run together comes closest to the
        most that is possible for their length, on average over all lengths.
        """
        best = {length: self.fitting(self._for(budget, length), length) for length in self.lengths}

        def worth(length: int) -> float:
            division = self._for(budget, length)
            if any(map(operator.lt, map(int, division), self.needed(least))):
                return 0.0
            return sum(self.fitting(division, other) / best[other] for other in self.lengths)

        division = self._for(budget, max(self.lengths, key=worth))
        pages = [min(int(count), most) for count, most in zip(division, self.most, strict=True)]
        for group, most in enumerate(self.most):  # what one group has no use for
            left = budget - sum(map(operator.mul, self.bytes, pages))
            pages[group] += min(most - pages[group], left // self.bytes[group])
        return tuple(pages)

    def needed(self, length: int) -> list[int]:
        """Pages of each group that one sequence holds at most."""
        return [need(length) for need in self.needs]

    def holds(self, budget: int, length: int) -> bool:
        """Whether so many bytes can be divided for one sequence of this length."""
        return sum(map(operator.mul, self.bytes, self.needed(length))) <= budget


def pages_for(
    config: EngineConfig, model: ModelConfig, geometry: Geometry, device: jax.Device, shapes: StepShapes, *,
    to_come: int = 0,
) -> tuple[tuple[int, ...], int]:  # fmt: skip
    """Pages of each cache group, their padding pages included, and the longest sequence that is accepted.

    Arguments:
      to_come: bytes of weights that are not on the device yet.

    Raises:
      ConfigError: a size that was asked for does not fit.
      DeviceError: free memory does not hold even a short sequence.
    """
    size, each = config.page_size, page_bytes(model, geometry)
    wanted = min(config.max_sequence_length or model.context_length, model.context_length)
    if config.max_sequence_length is not None and config.max_sequence_length > model.context_length:
        raise ConfigError(
            f"max_sequence_length is {config.max_sequence_length}, "
            f"but the model's context is {model.context_length} tokens",
            param="max_sequence_length",
        )
    given = config.kv_cache_memory
    places = place_bytes(config, model, geometry)
    budget = _automatic_bytes(config, device, sum(each), places, to_come) if given is None else given
    budget -= sum(each) + places  # of padding, and of recurrent layers
    shares = _shares(config, model, each, wanted, shapes)
    needed = config.max_sequence_length if config.max_sequence_length is not None else size
    if not shares.holds(budget, needed):
        capacity = _longest(lambda length: shares.holds(budget, length), wanted, size)
        error = DeviceError if given is None else ConfigError
        raise error(
            f"{'free memory' if given is None else f'kv_cache_memory of {given} bytes'} holds {capacity} tokens of "
            f"KV cache ({sum(each) // size} bytes a token{_beside(places, config)}), but {needed} are needed: "
            "raise kv_cache_memory or lower max_sequence_length",
            param="kv_cache_memory",
        )
    pages = shares.divide(budget, needed)
    longest = _longest(lambda length: all(map(operator.ge, pages, shares.needed(length))), wanted, size)
    return tuple(count + 1 for count in pages), longest


def _shares(
    config: EngineConfig, model: ModelConfig, each: tuple[int, ...], longest: int, shapes: StepShapes
) -> PoolShares:
    step = step_tokens(
        shapes.query_block, config.prefill_chunk_size, chunked=config.enable_chunked_prefill,
        decode_steps=max(shapes.decode_steps),
    )  # fmt: skip
    windows = [group.window for group in model.cache_groups]

    def need(window: int | None) -> Callable[[int], int]:
        return lambda length: most_pages(length, window, config.page_size, step)

    def most(window: int | None) -> int:
        whole, held = -(-longest // config.page_size), need(window)(longest)
        # behind a window, sequences hold all they may most of the time: leave as much to what the prefix cache keeps
        kept = 0 if window is None or not config.enable_prefix_caching else held
        return config.max_batch_size * min(whole, held + kept)

    lengths = [longest]
    while lengths[-1] > config.page_size:
        lengths.append(max(config.page_size, lengths[-1] * 2 // 3))
    return PoolShares(
        bytes=each,
        needs=tuple(map(need, windows)),
        lengths=tuple(reversed(lengths)),
        slots=config.max_batch_size,
        most=tuple(map(most, windows)),
    )


def _longest(fits: Callable[[int], bool], most: int, page_size: int) -> int:
    """The longest of the lengths that fit, where shorter ones do too: whole pages of tokens, or ``most``; else 0."""
    if fits(most):
        return most
    low, high = 0, -(-most // page_size)  # in pages: the first fits, the second does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * page_size) else (low, middle)
    return low * page_size


def place_bytes(config: EngineConfig, model: ModelConfig, geometry: Geometry) -> int:
    """What recurrent layers take, which have a place for each sequence that runs, and one for padding."""
    return 0 if model.recurrent is None else (config.max_batch_size + 1) * model.recurrent.slot_bytes(geometry.dtype)


def _beside(places: int, config: EngineConfig) -> str:
    return f" beside {places} bytes for the states of {config.max_batch_size} sequences" if places else ""


def _automatic_bytes(config: EngineConfig, device: jax.Device, each: int, places: int, to_come: int) -> int:
    """What the pools may take where no size is given.

    Arguments:
      each: bytes of a page of every group.
      places: see :func:`place_bytes`; they are part of the result.
      to_come: see :func:`pages_for`.
    """
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int((stats["bytes_limit"] - stats.get("bytes_in_use", 0)) * GPU_SHARE)
    return min(int((available_memory() - to_come) * CPU_SHARE), (CPU_TOKENS // config.page_size + 1) * each + places)
