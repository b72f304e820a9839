"""The host's side of a step: a plan packed into one int32 vector, and its fields unpacked inside the program.

One vector means one transfer a step. Floats travel as their bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from cvllm_jax.engine.pages import PageRun
from cvllm_jax.engine.plan import Admission, DecodeRow, PrefillBlock, SamplingSettings
from cvllm_jax.engine.sampler import NO_DRAFT, SamplingBatch
from cvllm_jax.models.layers import BlockBatch, Kernels

__all__ = ["AdmitLayout", "DecodeLayout", "Layout", "PrefillLayout", "pack_masks"]


class Layout:
    """Named int32 and float32 arrays laid one after another in a vector."""

    def __init__(self, fields: Mapping[str, tuple[tuple[int, ...], type]]) -> None:
        self._fields: dict[str, tuple[slice, tuple[int, ...], type]] = {}
        size = 0
        for name, (shape, kind) in fields.items():
            self._fields[name] = (slice(size, size := size + math.prod(shape)), shape, kind)
        self.size = size

    def new(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """A vector of zeros and views of its fields to fill."""
        vector = np.zeros(self.size, np.int32)
        views: dict[str, np.ndarray] = {
            name: vector[at].view(kind).reshape(shape) for name, (at, shape, kind) in self._fields.items()
        }
        return vector, views

    def unpack(self, vector: Int[Array, "L"]) -> dict[str, jax.Array]:
        def field(at: slice, shape: tuple[int, ...], kind: type) -> jax.Array:
            part = vector[at].reshape(shape)
            return part if kind is np.int32 else lax.bitcast_convert_type(part, jnp.float32)

        return {name: field(*spec) for name, spec in self._fields.items()}


_INT, _FLOAT = np.int32, np.float32


def _sampling_fields(rows: int) -> dict[str, tuple[tuple[int, ...], type]]:
    return {
        "temperature": ((rows,), _FLOAT),
        "top_k": ((rows,), _INT),
        "top_p": ((rows,), _FLOAT),
        "min_p": ((rows,), _FLOAT),
        "repetition_penalty": ((rows,), _FLOAT),
        "frequency_penalty": ((rows,), _FLOAT),
        "presence_penalty": ((rows,), _FLOAT),
        "seed": ((rows, 2), _INT),
        "slot": ((rows,), _INT),
        "forbid_end": ((rows,), _INT),
        "logprobs": ((rows,), _INT),
        "top_logprobs": ((rows,), _INT),
        "tracks_tokens": ((rows,), _INT),
        "constrained": ((rows,), _INT),
    }


def _fill_sampling(
    views: Mapping[str, np.ndarray], row: int, settings: SamplingSettings, slot: int, forbid_end: int
) -> None:
    for name in (
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty",
        "presence_penalty", "logprobs", "top_logprobs", "tracks_tokens",
    ):  # fmt: skip
        views[name][row] = getattr(settings, name)
    views["seed"].view(np.uint32)[row] = settings.seed
    views["slot"][row] = slot
    views["forbid_end"][row] = forbid_end
    views["constrained"][row] = settings.constrained


def _sampling_batch(
    fields: Mapping[str, jax.Array], position: Int[Array, "R"], ahead: jax.Array | int = 0
) -> SamplingBatch:
    return SamplingBatch(
        temperature=fields["temperature"],
        top_k=fields["top_k"],
        top_p=fields["top_p"],
        min_p=fields["min_p"],
        repetition_penalty=fields["repetition_penalty"],
        frequency_penalty=fields["frequency_penalty"],
        presence_penalty=fields["presence_penalty"],
        seed=lax.bitcast_convert_type(fields["seed"], jnp.uint32),
        position=position,
        slot=fields["slot"],
        draft=fields.get("draft"),
        forbid_end=fields["forbid_end"] > ahead,
        logprobs=fields["logprobs"] > 0,
        top_logprobs=fields["top_logprobs"] > 0,
        tracks_tokens=fields["tracks_tokens"] > 0,
        constrained=fields["constrained"] > 0,
    )


def pack_masks(masks: Items[bytes | None], rows: int, words: int) -> np.ndarray | None:
    """What each row may choose as uint32 ``[rows, words]``; None if none is constrained."""
    if not any(masks):
        return None
    packed = np.full((rows, words), 0xFFFFFFFF, np.uint32)
    for row, mask in enumerate(masks):
        if mask is not None:
            packed[row] = np.frombuffer(mask, np.uint32)
    return packed


def _fill_tables(tables: np.ndarray, row: int, runs: Items[PageRun]) -> None:
    """One row of the block tables ``[C, R, W]``; entries of pages that a sequence does not hold are padding."""
    for table, (first, pages) in zip(tables, runs, strict=True):
        table[row, first : first + len(pages)] = pages


@dataclass(frozen=True, slots=True)
class DecodeLayout:
    """Some next tokens for each of up to ``rows`` sequences; ``idle_slot`` is where padding rows point.

    With ``drafts`` a sequence may have several rows, its last token's and one for each draft.
    """

    rows: int
    groups: int
    table_width: int
    page_size: int
    idle_slot: int
    kernels: Kernels = Kernels()  # noqa: RUF009 - a tuple
    drafts: bool = False

    def _layout(self) -> Layout:
        R = self.rows
        return Layout(
            {"position": ((R,), _INT), "steps": ((R,), _INT), "tables": ((self.groups, R, self.table_width), _INT)}
            | _sampling_fields(R)
            | ({"draft": ((R,), _INT)} if self.drafts else {})
        )

    @property
    def size(self) -> int:
        return self._layout().size

    def pack(self, rows: Items[DecodeRow]) -> np.ndarray:
        vector, views = self._layout().new()
        views["slot"][:] = self.idle_slot
        if self.drafts:
            views["draft"][:] = NO_DRAFT
        index = 0
        for row in rows:
            for ahead, draft in enumerate((NO_DRAFT, *row.drafts)):
                views["position"][index] = row.position + ahead
                views["steps"][index] = row.steps
                _fill_tables(views["tables"], index, row.tables)
                _fill_sampling(views, index, row.sampling, row.slot, max(0, row.forbid_end - ahead))
                if draft != NO_DRAFT:
                    views["draft"][index] = draft
                index += 1
        return vector

    def unpack(
        self, vector: Int[Array, "L"], ahead: jax.Array | int = 0
    ) -> tuple[tuple[BlockBatch, ...], SamplingBatch]:
        """The step ``ahead`` steps after the first, for each cache group; rows that take fewer are padding in it."""
        f = self._layout().unpack(vector)
        live = f["steps"] > ahead
        position = jnp.where(live, f["position"] + ahead, 0)

        def batch(tables: jax.Array) -> BlockBatch:
            page = jnp.take_along_axis(tables, (position // self.page_size)[:, None], axis=1)[:, 0]
            return BlockBatch(
                positions=position, page=jnp.where(live, page, 0), offset=position % self.page_size, tables=tables,
                starts=position, counts=live.astype(jnp.int32), slots=f["slot"], kernels=self.kernels,
            )  # fmt: skip

        return tuple(map(batch, f["tables"])), _sampling_batch(f, position + 1, ahead)


@dataclass(frozen=True, slots=True)
class PrefillLayout:
    """Up to ``tokens`` tokens of prompts, in up to ``blocks`` blocks of up to ``block_size``.

    If all blocks have room for all of theirs, each has a place of its own; else tokens lie without gaps.
    """

    tokens: int
    blocks: int
    block_size: int
    groups: int
    table_width: int
    page_size: int
    idle_slot: int
    kernels: Kernels = Kernels()  # noqa: RUF009 - a tuple

    def _layout(self) -> Layout:
        B = self.blocks
        return Layout(
            {
                "tokens": ((self.tokens,), _INT),
                "start": ((B,), _INT),
                "count": ((B,), _INT),
                "owner": ((B,), _INT),
                "tables": ((self.groups, B, self.table_width), _INT),
            }
            | _sampling_fields(B)
        )

    @property
    def size(self) -> int:
        return self._layout().size

    @property
    def has_gaps(self) -> bool:
        return self.tokens == self.blocks * self.block_size

    def filled(self, counts: Items[int]) -> int:
        """How many tokens of the first of these blocks, or room that is theirs, a step takes."""
        first = counts[: self.blocks]
        return len(first) * self.block_size if self.has_gaps else min(self.tokens, sum(first))

    def takes(self, counts: Items[int]) -> bool:
        """Whether one step takes all of them."""
        return len(counts) <= self.blocks and (self.has_gaps or sum(counts) <= self.tokens)

    def first_of(
        self, blocks: tuple[PrefillBlock, ...]
    ) -> tuple[tuple[PrefillBlock, ...], tuple[PrefillBlock, ...]]:
        """Those that one step takes, of which the last may be cut, and what is left."""
        part, rest = blocks[: self.blocks], blocks[self.blocks :]
        ends = list(itertools.accumulate(len(block.tokens) for block in part))
        if self.has_gaps or ends[-1] <= self.tokens:
            return part, rest
        index = next(i for i, end in enumerate(ends) if end > self.tokens)
        block, over = part[index], ends[index] - self.tokens
        rest = part[index + 1 :] + rest
        if over == len(block.tokens):
            return part[:index], (block, *rest)
        cut = len(block.tokens) - over
        head = replace(block, tokens=block.tokens[:cut], choose=False, mask=None)
        return (*part[:index], head), (replace(block, start=block.start + cut, tokens=block.tokens[cut:]), *rest)

    def pack(self, blocks: Items[PrefillBlock]) -> np.ndarray:
        vector, views = self._layout().new()
        views["slot"][:] = self.idle_slot
        first = 0
        for index, block in enumerate(blocks):
            if self.has_gaps:
                first = index * self.block_size
            views["tokens"][first : first + len(block.tokens)] = block.tokens
            first += len(block.tokens)
            views["start"][index] = block.start
            views["count"][index] = len(block.tokens)
            views["owner"][index] = block.slot
            _fill_tables(views["tables"], index, block.tables)
            if block.choose:
                _fill_sampling(views, index, block.sampling, block.slot, block.forbid_end)
        return vector

    def unpack(
        self, vector: Int[Array, "L"]
    ) -> tuple[Int[Array, "T"], tuple[BlockBatch, ...], Int[Array, "B"], SamplingBatch]:
        """Tokens, a batch for each cache group, the index of each block's last token, and how the last ones choose."""
        f = self._layout().unpack(vector)
        T, B, Q = self.tokens, self.blocks, self.block_size
        token, count = jnp.arange(T, dtype=jnp.int32), f["count"]
        rows = places = None
        if self.has_gaps:
            first, block = jnp.arange(B, dtype=jnp.int32) * Q, token // Q
        else:
            ends = jnp.cumsum(count, dtype=jnp.int32)
            first = ends - count
            block = jnp.minimum(jnp.searchsorted(ends, token, side="right").astype(jnp.int32), B - 1)
            rows = jnp.minimum(first[:, None] + jnp.arange(Q, dtype=jnp.int32), T - 1)
            places = block * Q + jnp.minimum(token - first[block], Q - 1)
        index = token - first[block]
        real = index < count[block]
        positions = jnp.where(real, f["start"][block] + index, 0)

        def batch(tables: jax.Array) -> BlockBatch:
            return BlockBatch(
                positions=positions, page=jnp.where(real, tables[block, positions // self.page_size], 0),
                offset=positions % self.page_size, tables=tables, starts=f["start"], counts=count, slots=f["owner"],
                rows=rows, places=places, kernels=self.kernels,
            )  # fmt: skip

        last = jnp.minimum(first + jnp.maximum(count - 1, 0), T - 1)
        sampling = _sampling_batch(f, f["start"] + count)
        return f["tokens"], tuple(map(batch, f["tables"])), last, sampling


@dataclass(frozen=True, slots=True)
class AdmitLayout:
    """What a slot keeps of its sequence's tokens: up to ``tokens`` of them, ``bias`` biases and ``ends`` end tokens."""

    tokens: int
    vocab_size: int
    bias: int
    ends: int

    def _layout(self) -> Layout:
        return Layout(
            {
                "slot": ((1,), _INT),
                "prompt": ((self.tokens,), _INT),
                "generated": ((self.tokens,), _INT),
                "bias_token": ((self.bias,), _INT),
                "bias": ((self.bias,), _FLOAT),
                "ends": ((self.ends,), _INT),
            }
        )

    @property
    def size(self) -> int:
        return self._layout().size

    def pack(self, admission: Admission) -> np.ndarray:
        vector, views = self._layout().new()
        for name in ("prompt", "generated", "bias_token", "ends"):
            views[name][:] = self.vocab_size  # past the vocabulary: dropped
        views["slot"][0] = admission.slot
        prompt, generated = admission.tokens[: admission.prompt_length], admission.tokens[admission.prompt_length :]
        views["prompt"][: len(prompt)] = prompt
        views["generated"][: len(generated)] = generated
        for index, (token, bias) in enumerate(admission.bias):
            views["bias_token"][index] = token
            views["bias"][index] = bias
        views["ends"][: len(admission.end_tokens)] = admission.end_tokens
        return vector

    def unpack(self, vector: Int[Array, "L"]) -> dict[str, jax.Array]:
        return self._layout().unpack(vector)
