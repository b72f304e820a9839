"""Filling a model's weights from a checkpoint.

Each target is made of rows read, converted and stored block by block, then handed over before the next
begins, so that loading needs little more memory than the weights themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from cvllm_jax.checkpoints.cache import PreparedWeights
from cvllm_jax.checkpoints.checkpoint import Checkpoint
from cvllm_jax.checkpoints.mappings.rules import Rule, Source
from cvllm_jax.checkpoints.name_lists import listed
from cvllm_jax.checkpoints.parts import Part, is_vector, parts_of, tensor_names
from cvllm_jax.checkpoints.quantizing import (
    METHODS,
    PackedRows,
    StoredLayout,
    as_bytes,
    fitted,
    quantize_rows,
    shared_layout,
)
from cvllm_jax.config import Progress
from cvllm_jax.errors import ModelLoadError

__all__ = ["OFFSETS", "SCALES", "load_weights", "stored_layouts"]

_BLOCK_NUMBERS = 1 << 18  # a block of 1 MB in float32
_THREADS = 2
_ALIGNMENT = 64  # JAX takes host arrays aligned like this without a copy where it can
#: What is behind the name of a quantised weight in those of its scales and offsets.
SCALES, OFFSETS = ".scales", ".offsets"
_STAGE = "loading weights"


@dataclass(frozen=True, slots=True)
class _Target:
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: tuple[Part, ...]
    scales: jax.ShapeDtypeStruct | None = None
    """Of a quantised weight: ``[..., groups, out]``."""
    offsets: bool = False
    """Whether a quantised weight has offsets beside its scales."""
    bytes_of: str | None = None
    """The method whose values are to be stored in bytes."""

    @property
    def stored(self) -> np.dtype[Any]:
        """The type of a quantised weight's values."""
        return self.dtype if self.bytes_of is None else METHODS[self.bytes_of]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def load_weights(
    checkpoint: Checkpoint,
    rules: Sequence[Rule],
    targets: Mapping[str, jax.ShapeDtypeStruct],
    place: Callable[[str, np.ndarray], jax.Array],
    progress: Progress | None = None,
    *,
    use_cache: bool = True,
    bytes_of: Mapping[str, str] = {},
) -> dict[str, jax.Array]:
    """Make every target from the checkpoint's tensors.

    Arguments:
        rules: which tensors make up which target.
        targets: dotted path to shape (``[out, in]``, or ``[out]``) and type: bfloat16, float16 or float32. A weight
            to be quantised has the type that stores its values, and ``PATH.scales`` and perhaps ``PATH.offsets``,
            ``[groups, out]``, are targets too. Experts have one more axis in front.
        place: puts a finished host array on its device. The array is not changed afterwards, and not kept.
        progress: told of bytes of finished targets.
        bytes_of: for targets of type uint8 the method whose values they hold, two of 4 bits in a byte.
        use_cache: keep what a quantised file was converted to on disk, and load it from there next time.

    Returns:
        The placed arrays under the targets' names, in their order.

    Raises:
        ModelLoadError: tensors are missing, unknown, of the wrong shape or of a type that is not supported:
            all of them are listed in one message.
    """
    plan = _plan(checkpoint, rules, targets, bytes_of)
    total, done = sum(target.nbytes for target in plan), 0
    placed: dict[str, jax.Array] = {}

    def finish(target: _Target, arrays: Mapping[str, np.ndarray]) -> None:
        nonlocal done
        for suffix in arrays:
            placed[target.name + suffix] = place(target.name + suffix, arrays[suffix])
        done += target.nbytes
        if progress is not None:
            progress(_STAGE, done, total)

    cache = PreparedWeights.for_load(checkpoint, rules, targets) if use_cache else None
    stored = cache.load() if cache else None
    if stored is not None:
        for target in plan:
            finish(target, {suffix: stored[target.name + suffix] for suffix in _suffixes(target)})
    else:
        writer = cache.writer() if cache else None
        try:
            # The largest first: its host copy then coincides with the fewest arrays already placed.
            with ThreadPoolExecutor(_THREADS, thread_name_prefix="weights") as pool:
                for target in sorted(plan, key=lambda target: -target.nbytes):
                    arrays = _fill(checkpoint, target, pool)
                    if writer is not None:
                        for suffix in arrays:
                            writer.add(target.name + suffix, arrays[suffix])
                    finish(target, arrays)
                    del arrays
            if writer is not None:
                writer.commit()
        finally:
            if writer is not None:
                writer.close()
    return {name: placed[name] for name in targets}


def stored_layouts(
    checkpoint: Checkpoint, rules: Sequence[Rule], targets: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, StoredLayout]:
    """The layouts that keep matrices in the few bits that the file has them in; those of plain numbers have none.

    Arguments and errors are those of :func:`load_weights`.
    """
    layouts = {}
    for target in _plan(checkpoint, rules, targets, {}):
        if is_vector(target.name, target.shape):
            continue
        kept = [None if part.inputs else checkpoint.layout(part.tensor) for part in target.parts]
        if (layout := shared_layout(kept, target.shape[-1])) is not None:
            layouts[target.name] = layout
    return layouts


def _suffixes(target: _Target) -> tuple[str, ...]:
    """What is behind the name of each array that makes up a target."""
    return ("",) if target.scales is None else ("", SCALES, OFFSETS) if target.offsets else ("", SCALES)


def _fill(checkpoint: Checkpoint, target: _Target, pool: ThreadPoolExecutor) -> dict[str, np.ndarray]:
    """The arrays of one target on the host by their suffixes, aligned and contiguous."""
    array = _aligned_empty(target.shape, target.dtype)
    vector = is_vector(target.name, target.shape)
    grid = array.reshape(-1, 1 if vector else target.shape[-1])
    step = max(1, _BLOCK_NUMBERS // grid.shape[1])
    by_group = {
        suffix: _aligned_empty(target.scales.shape, np.dtype(target.scales.dtype))
        for suffix in _suffixes(target)
        if suffix and target.scales is not None
    }

    def convert(job: tuple[Part, int]) -> None:
        part, start = job
        stop = min(start + step, part.rows)
        where = part.places(start, stop)
        if target.scales is not None:
            packed = _packed(checkpoint, target, part, start, stop)
            grid[where] = packed.values if target.bytes_of is None else as_bytes(packed.values)
            rows = np.r_[where] if isinstance(where, slice) else where
            expert, row = np.divmod(rows, target.scales.shape[-1])
            for suffix, numbers in ((SCALES, packed.scales), (OFFSETS, packed.offsets)):
                if numbers is not None:
                    by_group[suffix].reshape(-1, *target.scales.shape[-2:])[expert, :, row] = numbers
            return
        if vector:  # to the checkpoint a vector is one row
            block = checkpoint.read(part.tensor).reshape(-1, 1)[start:stop]
        else:
            block = part.read(checkpoint, start, stop)
        if part.plus:
            block = block.astype(np.float32) + np.float32(part.plus)
        with np.errstate(over="ignore"):  # looked for below
            grid[where] = block
        if grid.dtype == np.float16 and block.dtype != np.float16 and not np.isfinite(grid[where]).all():
            raise ModelLoadError(f"{part.tensor} has values outside float16's range: choose bf16 or f32")

    jobs = [(part, start) for part in target.parts for start in range(0, part.rows, step)]
    for _ in pool.map(convert, jobs):
        pass
    return {"": array, **by_group}


def _packed(checkpoint: Checkpoint, target: _Target, part: Part, start: int, stop: int) -> PackedRows:
    """Rows in the target's layout: as the file has them where that is the same, else rounded."""
    assert target.scales is not None
    groups = target.scales.shape[-2]
    packed = None if part.inputs else checkpoint.packed(part.tensor, start, stop)
    if packed is not None:
        packed = fitted(packed, target.stored, groups, offsets=target.offsets)
    if packed is None:
        rows = part.read(checkpoint, start, stop)
        if not np.isfinite(rows).all():
            raise ModelLoadError(f"{part.tensor} has values that are no finite numbers, which cannot be quantised")
        packed = quantize_rows(
            rows, target.stored, groups, offsets=target.offsets, scale_dtype=target.scales.dtype
        )
    numbers = packed.scales if packed.offsets is None else np.abs(packed.scales) + np.abs(packed.offsets)
    if target.scales.dtype == np.float16 and not np.abs(numbers).max() <= np.finfo(np.float16).max:
        raise ModelLoadError(f"{part.tensor} has values whose scales are outside float16's range: choose int8 or fp8")
    return packed


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    nbytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + nbytes].view(dtype).reshape(shape)


def _plan(
    checkpoint: Checkpoint, rules: Sequence[Rule], targets: Mapping[str, jax.ShapeDtypeStruct],
    bytes_of: Mapping[str, str],
) -> list[_Target]:  # fmt: skip
    """Match targets and tensors; every mismatch there is goes into one error."""
    missing: list[str] = []
    wrong: list[str] = []
    used: set[str] = set()
    plan: list[_Target] = []
    pairs = {name for name, method in bytes_of.items() if method != "fp8"}
    shapes = {
        name: (*struct.shape[:-1], 2 * struct.shape[-1]) if name in pairs else tuple(struct.shape)
        for name, struct in targets.items()
    }
    patterns = [(_pattern(rule.target), rule) for rule in rules if rule.target is not None]
    for name, struct in targets.items():
        if name.endswith((SCALES, OFFSETS)):  # they come with their weight
            continue
        choices = [
            [
                (name, source)
                for source in _sources(rule, checkpoint.format)
                for name in tensor_names(source, layer, checkpoint.config, struct.shape)
            ]
            for pattern, rule in patterns
            if (match := pattern.fullmatch(name))
            for layer in [match.groupdict().get("i", "")]
        ]
        if not choices:
            raise ModelLoadError(f"no rule says which tensors make up the weight {name}")
        there = (sources for sources in choices if sources and all(t in checkpoint.tensors for t, _ in sources))
        sources = next(there, choices[0])
        used.update(tensor for tensor, _ in sources)
        absent = [tensor for tensor, _ in sources if tensor not in checkpoint.tensors]
        if absent or not sources:
            missing += absent or [f"{name} (this file format has no tensor for it)"]
            continue
        try:
            parts = parts_of(checkpoint, name, shapes[name], sources)
        except ValueError as error:
            wrong.append(str(error))
        else:
            target = _Target(
                name, tuple(struct.shape), np.dtype(struct.dtype), parts, bytes_of=bytes_of.get(name)
            )
            if name + SCALES in targets:
                target = replace(target, scales=targets[name + SCALES], offsets=name + OFFSETS in targets)
            plan.append(target)
    layers = checkpoint.config.get("num_hidden_layers", 0)
    unneeded = [
        (_pattern(_name(source)), rule.target is None or rule.may_be_unused)
        for rule in rules
        if rule.target is None or rule.may_be_unused or rule.may_have_more_layers
        for source in _sources(rule, checkpoint.format)
    ]
    extra = [
        name
        for name in checkpoint.tensors
        if name not in used
        and not any(
            (match := pattern.fullmatch(name)) and (anywhere or int(match.groupdict().get("i", -1)) >= layers)
            for pattern, anywhere in unneeded
        )
    ]
    problems = [
        f"{len(names)} {kind} ({text})"
        for kind, names, text in (
            ("missing", missing, listed(missing)),
            ("unexpected", extra, listed(extra)),
            ("misshapen", wrong, listed(wrong, alike=True, most_characters=400)),
        )
        if names
    ]
    if problems:
        raise ModelLoadError(f"the tensors of {checkpoint.name} do not fit the model: {'; '.join(problems)}")
    return plan


def _sources(rule: Rule, file_format: str) -> tuple[Source, ...]:
    return rule.gguf if file_format == "gguf" else rule.hf


def _name(source: Source) -> str:
    return source if isinstance(source, str) else source.name


def _pattern(template: str) -> re.Pattern[str]:
    number = "0|[1-9][0-9]{0,5}"
    return re.compile(re.escape(template).replace(r"\{i\}", f"(?P<i>{number})").replace(r"\{e\}", f"(?:{number})"))
