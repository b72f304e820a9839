"""Folders whose weights are stored in few bits: FP8, compressed-tensors, GPTQ and AWQ.

Beside each ``X.weight`` of few bits, or in its place, such folders have tensors with scales. Here they have one tensor
``X.weight`` again, which is read as numbers or, where nothing has to be rounded, as it is.

The formats: ``finegrained_fp8`` in transformers, https://github.com/vllm-project/compressed-tensors (pack-quantized,
int-quantized, float-quantized), https://github.com/ModelCloud/GPTQModel and https://github.com/casper-hansen/AutoAWQ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from cvllm_jax.checkpoints.folder import FolderWeights
from cvllm_jax.checkpoints.quantizing import PackedRows, StoredLayout
from cvllm_jax.errors import ModelLoadError

__all__ = ["QuantizedFolder", "QuantizedTensor"]

#: Where AWQ puts eight neighbouring columns among the nibbles of a word.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A weight of few bits."""

    shape: tuple[int, int]
    dtype: str
    rows: Callable[[int, int], PackedRows]
    offsets: bool = False
    """Whether the middle of a group's range may be elsewhere than at 0."""
    order: np.ndarray | None = None
    """The group of each column, where groups are no neighbours; None: they are."""


class QuantizedFolder:
    """The tensors of a folder, those of few bits as one each.

    Raises:
        ModelLoadError: the method, an option or the shape of a tensor is not supported, or tensors are missing.
    """

    def __init__(self, files: FolderWeights, options: Mapping[str, Any], folder: Path) -> None:
        self.files, self._folder = files.files, folder
        self._plain = files
        self._options = options
        self.method = str(options.get("quant_method"))
        make = {
            "fp8": self._fp8, "compressed-tensors": self._compressed, "gptq": self._gptq, "awq": self._awq,
        }[self.method]  # fmt: skip
        self._hidden: set[str] = set()
        self._weights: dict[str, QuantizedTensor] = {}
        stored = files.tensors
        for name in stored:
            module, _, kind = name.rpartition(".")
            if kind in ("qweight", "weight_packed") or (kind == "weight" and stored[name].dtype in ("F8_E4M3", "I8")):
                self._weights[module + ".weight"] = make(module)
        self.tensors = {
            name: tensor for name, tensor in stored.items() if name not in self._hidden
        } | self._weights

    def layout(self, name: str) -> StoredLayout | None:
        """What keeps a weight as it is, or nearly: groups that are no neighbours are rounded to int8."""
        weight = self._weights.get(name)
        if weight is None:
            return None
        packed = weight.rows(0, 1)
        groups, columns = packed.scales.shape[1], weight.shape[1]
        if weight.order is not None or columns % groups:
            return StoredLayout("int8")
        methods: dict[str, Literal["int8", "int4", "fp8"]] = {"int4": "int4", "int8": "int8"}
        method = methods.get(packed.values.dtype.name, "fp8")
        return StoredLayout(method, None if groups == 1 else columns // groups, weight.offsets)

    def read(self, name: str, start_row: int = 0, stop_row: int | None = None) -> np.ndarray:
        weight = self._weights.get(name)
        if weight is None:
            plain: np.ndarray = self._plain.read(name, start_row, stop_row)
            return plain
        packed = weight.rows(*self._range(name, start_row, stop_row))
        if weight.order is None:
            return packed.numbers()[:, : weight.shape[1]]
        numbers = packed.values.astype(np.float32) * packed.scales[:, weight.order]
        return numbers if packed.offsets is None else numbers + packed.offsets[:, weight.order]

    def packed(self, name: str, start_row: int, stop_row: int) -> PackedRows | None:
        weight = self._weights.get(name)
        if weight is None or weight.order is not None:
            return None
        packed = weight.rows(*self._range(name, start_row, stop_row))
        return packed if packed.values.shape[1] == weight.shape[1] else None

    def close(self) -> None:
        self._plain.close()

    # *** what a module's tensors mean ***

    def _fp8(self, module: str) -> QuantizedTensor:
        """One scale, or one for each block, which divides nothing: the name says that it was the inverse once."""
        scale = next((n for n in ("weight_scale_inv", "weight_scale") if f"{module}.{n}" in self._plain.tensors), "")
        if not scale:
            raise self._unsupported(f"{module} without a weight_scale_inv")
        self._hide(module, "input_scale", "activation_scale")
        return self._scaled(module, scale)

    def _compressed(self, module: str) -> QuantizedTensor:
        if f"{module}.weight_packed" not in self._plain.tensors:
            self._hide(module, "input_scale", "input_zero_point", "weight_zero_point")
            if f"{module}.weight_zero_point" in self._plain.tensors and np.any(self._raw(module, "weight_zero_point")):
                raise self._unsupported(f"{module} with zero points")
            return self._scaled(module, "weight_scale")
        packed, shape = self._raw(module, "weight_packed"), self._raw(module, "weight_shape")
        scales = self._numbers(module, "weight_scale")
        outputs, inputs = (int(size) for size in shape.reshape(-1)[:2]) if shape.size == 2 else (0, 0)
        if packed.ndim != 2 or packed.shape[0] != outputs or not 0 < inputs <= 8 * packed.shape[1]:
            raise self._unsupported(f"{module}.weight_packed {list(packed.shape)} for {shape.reshape(-1)[:4].tolist()}")
        bits = 4 if packed.shape[1] == -(-inputs // 8) else 8 if packed.shape[1] == -(-inputs // 4) else 0
        if not bits:
            raise self._unsupported(f"{module} with neither 4 nor 8 bits")
        self._check_scales(module, scales, outputs, inputs)
        zeros = order = None
        if f"{module}.weight_zero_point" in self._plain.tensors:
            zeros = _unpacked(self._raw(module, "weight_zero_point").T, bits)[:, :outputs].T - (1 << bits - 1)
            self._check_scales(module, zeros, outputs, inputs)
        if f"{module}.weight_g_idx" in self._plain.tensors:
            order = self._order(module, "weight_g_idx", inputs, scales.shape[1])

        def rows(start: int, stop: int) -> PackedRows:
            values = _unpacked(packed[start:stop], bits)[:, :inputs] - (1 << bits - 1)
            return _centred(values, bits, scales[start:stop], None if zeros is None else zeros[start:stop])

        return QuantizedTensor((outputs, inputs), f"INT{bits}", rows, zeros is not None and bool(zeros.any()), order)

    def _scaled(self, module: str, scale: str) -> QuantizedTensor:
        """Values of 8 bits with one scale, one a row, or one for each block."""
        values, scales = self._raw(module, "weight"), self._numbers(module, scale)
        if values.ndim != 2 or scales.ndim > 2 or not scales.size:
            raise self._unsupported(f"{module}.weight {list(values.shape)} with scales {list(scales.shape)}")
        outputs, inputs = values.shape
        scales = scales.reshape(-1, 1) if scales.ndim < 2 else scales
        block = self._options.get("weight_block_size") or self._block_structure()
        if scales.shape[0] not in (1, outputs) or scales.shape[1] > 1:
            sizes = block if isinstance(block, list) else []
            if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
                raise self._unsupported(f"{module} with scales {list(scales.shape)} and no size of blocks")
            if scales.shape != (-(-outputs // block[0]), -(-inputs // block[1])):
                raise self._unsupported(f"{module}.weight {list(values.shape)} with scales {list(scales.shape)}")
            height, width = block
        else:
            height, width = outputs if scales.shape[0] == 1 else 1, inputs

        def rows(start: int, stop: int) -> PackedRows:
            block_scales = scales[np.arange(start, stop) // height]
            part = values[start:stop]
            if inputs % width:  # the last block is cut short
                part = np.pad(part, ((0, 0), (0, scales.shape[1] * width - inputs)))
            return PackedRows(part, block_scales)

        return QuantizedTensor((outputs, inputs), "I8" if values.dtype == np.int8 else "F8_E4M3", rows)

    def _gptq(self, module: str) -> QuantizedTensor:
        """Columns are stored as rows, eight in a word, or four; zero points less one, but for version 2."""
        bits = self._bits()
        packed, zeros, scales = (self._raw(module, name) for name in ("qweight", "qzeros", "scales"))
        inputs, outputs = packed.shape[0] * 32 // bits, packed.shape[-1]
        one = 0 if self._options.get("checkpoint_format") == "gptq_v2" else 1
        numbers = scales.astype(np.float32)
        self._check_scales(module, numbers.T, outputs, inputs)
        points = (_unpacked(zeros, bits)[:, :outputs] + one) & ((1 << bits) - 1)
        if packed.ndim != 2 or points.shape != scales.shape:
            raise self._unsupported(f"{module}.qzeros {list(zeros.shape)} with scales {list(scales.shape)}")
        order = self._order(module, "g_idx", inputs, len(scales)) if f"{module}.g_idx" in self._plain.tensors else None
        return QuantizedTensor(
            (outputs, inputs), f"INT{bits}",
            lambda start, stop: _shifted(
                _unpacked(packed[:, start:stop].T, bits), bits, numbers[:, start:stop].T, points[:, start:stop].T
            ),
            bool((points != 1 << bits - 1).any()), order,
        )  # fmt: skip

    def _awq(self, module: str) -> QuantizedTensor:
        """As GPTQ with columns and rows the other way round, and nibbles in an order of their own."""
        if self._bits() != 4 or str(self._options.get("version", "gemm")).lower() != "gemm":
            raise self._unsupported("its version or number of bits")
        packed, zeros, scales = (self._raw(module, name) for name in ("qweight", "qzeros", "scales"))
        inputs, outputs = packed.shape[0], packed.shape[-1] * 8
        numbers = scales.astype(np.float32)
        self._check_scales(module, numbers.T, outputs, inputs)
        points = _unpacked(zeros, 4, _AWQ_PLACES)
        if packed.ndim != 2 or points.shape != scales.shape:
            raise self._unsupported(f"{module}.qzeros {list(zeros.shape)} with scales {list(scales.shape)}")

        def rows(start: int, stop: int) -> PackedRows:
            first = start // 8
            values = _unpacked(packed[:, first : -(-stop // 8)], 4, _AWQ_PLACES)
            values = values[:, start - 8 * first : stop - 8 * first]
            return _shifted(values.T, 4, numbers[:, start:stop].T, points[:, start:stop].T)

        return QuantizedTensor((outputs, inputs), "INT4", rows, bool((points != 8).any()))

    # *** reading and refusing ***

    def _raw(self, module: str, name: str) -> np.ndarray:
        tensor = f"{module}.{name}"
        if tensor not in self._plain.tensors:
            raise self._unsupported(f"{module} without {name}")
        self._hidden.add(tensor)
        return self._plain.raw(tensor)

    def _numbers(self, module: str, name: str) -> np.ndarray:
        return self._raw(module, name).astype(np.float32)

    def _hide(self, module: str, *names: str) -> None:
        self._hidden.update(f"{module}.{name}" for name in names)

    def _order(self, module: str, name: str, inputs: int, groups: int) -> np.ndarray | None:
        order = self._raw(module, name).reshape(-1).astype(np.int64)
        if order.size != inputs or (order.size and not 0 <= order.min() <= order.max() < groups):
            raise self._unsupported(f"{module}.{name}, which does not say the group of each of {inputs} columns")
        in_order = inputs % groups == 0 and (order == np.arange(inputs) // (inputs // groups)).all()
        return None if in_order else order

    def _check_scales(self, module: str, scales: np.ndarray, outputs: int, inputs: int) -> None:
        if scales.ndim != 2 or scales.shape[0] != outputs or not scales.shape[1] or inputs % scales.shape[1]:
            raise self._unsupported(f"{module} of {outputs} rows and {inputs} columns with {list(scales.shape)} scales")

    def _bits(self) -> int:
        bits = self._options.get("bits", self._options.get("w_bit"))
        if bits not in (4, 8):
            raise self._unsupported(f"{bits} bits")
        return int(bits)

    def _block_structure(self) -> Any:
        """Of the only group of layers that compressed-tensors describes."""
        groups = self._options.get("config_groups")
        group = next(iter(groups.values()), None) if isinstance(groups, dict) else None
        weights = group.get("weights") if isinstance(group, dict) else None
        return weights.get("block_structure") if isinstance(weights, dict) else None

    def _range(self, name: str, start: int, stop: int | None) -> tuple[int, int]:
        rows = self._weights[name].shape[0]
        stop = rows if stop is None else stop
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"rows {start} to {stop} of {name}, which has {rows}")
        return start, stop

    def _unsupported(self, what: str) -> ModelLoadError:
        return ModelLoadError(f"{self._folder} is quantised with {self.method}, and {what} is not supported")


def _unpacked(words: np.ndarray, bits: int, places: tuple[int, ...] | None = None) -> np.ndarray:
    """Numbers of 4 or 8 bits from the words of the last axis, the lowest first or as ``places`` says."""
    shifts = np.asarray(places or range(32 // bits), np.uint32) * bits
    numbers = (np.ascontiguousarray(words).view(np.uint32)[..., None] >> shifts) & ((1 << bits) - 1)
    return numbers.astype(np.int16).reshape(*words.shape[:-1], -1)


def _shifted(values: np.ndarray, bits: int, scales: np.ndarray, points: np.ndarray) -> PackedRows:
    """Unsigned numbers with unsigned zero points."""
    half = 1 << bits - 1
    return _centred(values - half, bits, scales, points - half)


def _centred(values: np.ndarray, bits: int, scales: np.ndarray, points: np.ndarray | None) -> PackedRows:
    """``(values - points) * scales`` of signed numbers."""
    stored = values.astype(np.int8) if bits == 8 else values.astype(np.int8).astype(ml_dtypes.int4)
    moved = None if points is None or not points.any() else -points.astype(np.float32) * scales
    return PackedRows(stored, np.ascontiguousarray(scales), moved)
