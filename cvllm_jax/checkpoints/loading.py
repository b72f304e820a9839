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
from cvllm_jax.checkpoints.mappings.rules import Interleaved, PerHead, Plus, Rule, Source
from cvllm_jax.checkpoints.quantizing import PackedRows, fitted, quantize_rows
from cvllm_jax.config import Progress
from cvllm_jax.errors import ModelLoadError

__all__ = ["OFFSETS", "SCALES", "load_weights"]

_BLOCK_NUMBERS = 1 << 18  # a block of 1 MB in float32
_THREADS = 2
_ALIGNMENT = 64  # JAX takes host arrays aligned like this without a copy where it can
_LISTED = 20
#: What is behind the name of a quantised weight in those of its scales and offsets.
SCALES, OFFSETS = ".scales", ".offsets"
_STAGE = "loading weights"


@dataclass(frozen=True, slots=True)
class _Part:
    """One tensor of the checkpoint and the rows of the target that it fills."""

    tensor: str
    first: int
    rows: int
    heads: int = 0
    """Number of heads whose interleaved rows are put back into halves; 0: rows stay in order."""
    rotated: int = 0
    """The first so many rows of each of these heads are interleaved, the others stay in order."""
    plus: float = 0.0
    """What is added to every value."""


@dataclass(frozen=True, slots=True)
class _Target:
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: tuple[_Part, ...]
    scales: jax.ShapeDtypeStruct | None = None
    """Of a quantised weight: ``[groups, out]``."""
    offsets: bool = False
    """Whether a quantised weight has offsets beside its scales."""

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
) -> dict[str, jax.Array]:
    """Make every target from the checkpoint's tensors.

    Arguments:
        rules: which tensors make up which target.
        targets: dotted path to shape (``[out, in]``, or ``[out]``) and type: bfloat16, float16 or float32. A weight
            to be quantised has the type that stores its values, and ``PATH.scales`` and perhaps ``PATH.offsets``,
            ``[groups, out]``, are targets too.
        place: puts a finished host array on its device. The array is not changed afterwards, and not kept.
        progress: told of bytes of finished targets.
        use_cache: keep what a quantised file was converted to on disk, and load it from there next time.

    Returns:
        The placed arrays under the targets' names, in their order.

    Raises:
        ModelLoadError: tensors are missing, unknown, of the wrong shape or of a type that is not supported:
            all of them are listed in one message.
    """
    plan = _plan(checkpoint, rules, targets)
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


def _suffixes(target: _Target) -> tuple[str, ...]:
    """What is behind the name of each array that makes up a target."""
    return ("",) if target.scales is None else ("", SCALES, OFFSETS) if target.offsets else ("", SCALES)


def _fill(checkpoint: Checkpoint, target: _Target, pool: ThreadPoolExecutor) -> dict[str, np.ndarray]:
    """The arrays of one target on the host by their suffixes, aligned and contiguous."""
    array = _aligned_empty(target.shape, target.dtype)
    vector = array.ndim == 1
    grid = array.reshape(-1, 1 if vector else target.shape[-1])
    step = max(1, _BLOCK_NUMBERS // grid.shape[1])
    by_group = {
        suffix: _aligned_empty(target.scales.shape, np.dtype(target.scales.dtype))
        for suffix in _suffixes(target)
        if suffix and target.scales is not None
    }

    def convert(job: tuple[_Part, int]) -> None:
        part, start = job
        stop = min(start + step, part.rows)
        if part.heads:
            where: Any = part.first + _half_order(part)[start:stop]
        else:
            where = slice(part.first + start, part.first + stop)
        if target.scales is not None:
            packed = _packed(checkpoint, target, part.tensor, start, stop)
            grid[where] = packed.values
            by_group[SCALES][:, where] = packed.scales.T
            if packed.offsets is not None:
                by_group[OFFSETS][:, where] = packed.offsets.T
            return
        if vector:  # to the checkpoint a vector is one row
            block = checkpoint.read(part.tensor).reshape(-1, 1)[start:stop]
        else:
            block = checkpoint.read(part.tensor, start, stop)
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


def _packed(checkpoint: Checkpoint, target: _Target, tensor: str, start: int, stop: int) -> PackedRows:
    """Rows in the target's layout: as the file has them where that is the same, else rounded."""
    assert target.scales is not None
    groups = target.scales.shape[0]
    packed = checkpoint.packed(tensor, start, stop)
    if packed is not None:
        packed = fitted(packed, target.dtype, groups, offsets=target.offsets)
        if packed is not None:
            return packed
    rows = checkpoint.read(tensor, start, stop)
    if not np.isfinite(rows).all():
        raise ModelLoadError(f"{tensor} has values that are no finite numbers, which cannot be quantised")
    return quantize_rows(rows, target.dtype, groups, offsets=target.offsets, scale_dtype=target.scales.dtype)


def _half_order(part: _Part) -> np.ndarray:
    """Where each row of an interleaved tensor goes: a head's row 2j + s to s * R/2 + j; from R on they stay."""
    order = np.arange(part.rows).reshape(part.heads, -1)
    halves = order[:, : part.rotated].reshape(part.heads, 2, -1).transpose(0, 2, 1).reshape(part.heads, -1)
    return np.concatenate([halves, order[:, part.rotated :]], axis=1).reshape(-1)


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    nbytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + nbytes].view(dtype).reshape(shape)


def _plan(checkpoint: Checkpoint, rules: Sequence[Rule], targets: Mapping[str, jax.ShapeDtypeStruct]) -> list[_Target]:
    """Match targets and tensors; every mismatch there is goes into one error."""
    missing: list[str] = []
    wrong: list[str] = []
    used: set[str] = set()
    plan: list[_Target] = []
    patterns = [(_pattern(rule.target), rule) for rule in rules if rule.target is not None]
    for name, struct in targets.items():
        if name.endswith((SCALES, OFFSETS)):  # they come with their weight
            continue
        choices = [
            [
                (name, source)
                for source in _sources(rule, checkpoint.format)
                for name in _names(source, layer, checkpoint.config)
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
        target, problem = _target(checkpoint, name, struct, sources)
        if target is None:
            wrong.append(problem)
        else:
            if name + SCALES in targets:
                target = replace(target, scales=targets[name + SCALES], offsets=name + OFFSETS in targets)
            plan.append(target)
    unneeded = [
        _pattern(_name(source))
        for rule in rules
        if rule.target is None or rule.may_be_unused
        for source in _sources(rule, checkpoint.format)
    ]
    extra = [
        name
        for name in checkpoint.tensors
        if name not in used and not any(pattern.fullmatch(name) for pattern in unneeded)
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:_LISTED])}"
        + (f" and {len(names) - _LISTED} more)" if len(names) > _LISTED else ")")
        for kind, names in (("missing", missing), ("unexpected", extra), ("misshapen", wrong))
        if names
    ]
    if problems:
        raise ModelLoadError(f"the tensors of {checkpoint.name} do not fit the model: {'; '.join(problems)}")
    return plan


def _target(
    checkpoint: Checkpoint, name: str, struct: jax.ShapeDtypeStruct, sources: Sequence[tuple[str, Source]]
) -> tuple[_Target, str] | tuple[None, str]:
    """A target with its parts, or what is wrong with them."""
    shape = tuple(struct.shape)
    parts: list[_Part] = []
    first = 0
    for tensor, source in sources:
        info = checkpoint.tensors[tensor]
        if not info.readable:
            return None, f"{tensor} of type {info.dtype}, which is not supported yet"
        heads = rotated = 0
        if isinstance(source, Interleaved):
            count = checkpoint.config.get(source.heads)
            if not isinstance(count, int) or count < 1:
                return None, f"{tensor}, whose rows cannot be ordered without {source.heads} in the configuration"
            heads = count
            rotated = int(info.shape[0] // heads * _rotated_share(checkpoint.config, source))
            if info.shape[0] % (2 * heads) or rotated % 2:
                return None, f"{tensor} {list(info.shape)}, whose rows do not divide into {heads} heads"
        if isinstance(source, PerHead):
            if info.shape != shape[1:]:
                break
            parts.append(_Part(tensor, first, rows=1))
            first += 1
            continue
        if len(info.shape) != len(shape) or info.shape[1:] != shape[1:]:
            break
        rows = math.prod(info.shape[:-1]) if len(shape) > 1 else info.shape[0]
        plus = source.amount if isinstance(source, Plus) else 0.0
        parts.append(_Part(tensor, first, rows, heads, rotated, plus))
        first += rows
    if len(parts) < len(sources) or first != math.prod(shape[: max(1, len(shape) - 1)]):
        found = " + ".join(f"{tensor} {list(checkpoint.tensors[tensor].shape)}" for tensor, _ in sources)
        return None, f"{found} for {name} {list(shape)}"
    return _Target(name, shape, np.dtype(struct.dtype), tuple(parts)), ""


def _sources(rule: Rule, file_format: str) -> tuple[Source, ...]:
    return rule.gguf if file_format == "gguf" else rule.hf


def _name(source: Source) -> str:
    return source if isinstance(source, str) else source.name


def _names(source: Source, layer: str, config: Mapping[str, Any]) -> list[str]:
    """The tensors that a source stands for in one layer."""
    name = _name(source).replace("{i}", layer)
    if not isinstance(source, PerHead):
        return [name]
    heads = config.get(source.heads)
    return [name.replace("{h}", str(head)) for head in range(heads)] if isinstance(heads, int) else [name]


def _rotated_share(config: Mapping[str, Any], source: Interleaved) -> float:
    options = config.get("rope_parameters")
    for at in (options if isinstance(options, Mapping) else {}, config):
        if at.get("partial_rotary_factor") is not None:
            return float(at["partial_rotary_factor"])  # the model's configuration has been read, and checks it
    return source.rotated


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{i\}", r"(?P<i>0|[1-9][0-9]{0,5})"))
