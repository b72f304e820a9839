"""Reading a Hugging Face model folder: ``config.json`` and one or many safetensors files."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cvllm_jax.checkpoints.mapped_file import read_file
from cvllm_jax.checkpoints.safetensors_file import SafetensorsFile
from cvllm_jax.errors import ModelLoadError, shown

__all__ = [
    "GET_SAFETENSORS",
    "PICKLES",
    "QUANTIZED",
    "FolderWeights",
    "convert_pickles",
    "eos_from_config",
    "read_config",
    "read_json",
    "read_json_list",
    "sampling_from_config",
]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
#: What weights may be quantised with.
QUANTIZED = ("fp8", "compressed-tensors", "gptq", "awq", "mxfp4")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
GET_SAFETENSORS = "get the model as safetensors, for example through https://huggingface.co/spaces/safetensors/convert"
_MAX_JSON_BYTES = 1 << 25
_MAX_JSON_CONTAINERS = 100_000
_MAX_SHARDS = 4096


class FolderWeights:
    """The tensors of a folder, over all its shards.

    Arguments:
        rename: gives the name that a stored tensor has here, or None for one that is left out.

    Raises:
        ModelLoadError: shards are missing, named outside the folder, or disagree with the index.
    """

    def __init__(
        self, folder: Path, weights: str | None = None, *, rename: Callable[[str], str | None] | None = None
    ) -> None:
        self.files: list[SafetensorsFile] = []
        self._home: dict[str, SafetensorsFile] = {}
        index = _read_index(folder, weights)
        try:
            for shard in sorted(set(index.values())) or [weights or _SINGLE]:
                file = SafetensorsFile(folder / shard)
                self.files.append(file)
                for name in file.tensors:
                    if name in self._home:
                        raise ModelLoadError(f"{folder}: the tensor {name[:80]!r} is in more than one shard")
                    self._home[name] = file
            for name, shard in index.items():
                if name not in self._home or self._home[name].path.name != shard:
                    raise ModelLoadError(f"{folder}: {shard} lacks the tensor {name[:80]!r} of {_INDEX}")
        except ModelLoadError:
            self.close()
            raise
        names = {stored: stored if rename is None else rename(stored) for stored in self._home}
        self._stored = {name: stored for stored, name in names.items() if name is not None}

    @property
    def tensors(self) -> Mapping[str, Any]:
        return {name: self._home[stored].tensors[stored] for name, stored in self._stored.items()}

    def read(self, name: str, start_row: int = 0, stop_row: int | None = None) -> Any:
        stored = self._stored[name]
        return self._home[stored].read(stored, start_row, stop_row)

    def raw(self, name: str) -> np.ndarray:
        """A whole tensor as stored."""
        stored = self._stored[name]
        return self._home[stored].raw(stored)

    def packed(self, name: str, start_row: int, stop_row: int) -> None:
        """Plain tensors have no scales."""

    def layout(self, name: str) -> None:
        """Nor a layout for few bits."""

    def close(self) -> None:
        for file in self.files:
            file.close()


def _read_index(folder: Path, weights: str | None) -> dict[str, str]:
    """Tensor name to shard name; empty where one file holds everything."""
    index_path = folder / _INDEX
    if (folder / (weights or _SINGLE)).exists() and (weights in (None, _SINGLE) or not index_path.exists()):
        return {}
    if not index_path.exists():
        raise ModelLoadError(_why_no_weights(folder))
    shards = read_json(index_path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelLoadError(f"{index_path} has no weight_map")
    for shard in shards.values():
        plain = isinstance(shard, str) and shard.endswith(".safetensors") and not set(shard) & set("/\\:\0")
        if not plain or shard.startswith("."):
            raise ModelLoadError(
                f"{index_path} names the shard {str(shard)[:80]!r}, no plain name of a safetensors file"
            )
    names = set(shards.values())
    if len(names) > _MAX_SHARDS:
        raise ModelLoadError(f"{index_path} names {len(names)} shards, more than the limit of {_MAX_SHARDS}")
    if missing := sorted(name for name in names if not (folder / name).exists()):
        raise ModelLoadError(f"{folder} lacks {len(missing)} of {len(names)} shards: {_list(missing)}")
    return shards


def _why_no_weights(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        return (
            f"{folder} has its weights only as pickle files ({_list(pickles)}), which can run code when they "
            f"are opened: {convert_pickles(folder)}"
        )
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        return f"{folder} has GGUF files: give the path of one of them ({_list(ggufs)})"
    return f"{folder} has neither {_SINGLE} nor {_INDEX}"


def convert_pickles(folder: Path) -> str:
    """What to type for safetensors beside the pickle files of a folder."""
    path = folder / "config.json"
    names = read_json(path).get("architectures") if path.is_file() else None
    name = names[0] if isinstance(names, list) and names else None
    known = isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9]{0,99}", name)
    place = json.dumps(str(folder))
    code = (
        f"from transformers import {name if known else 'AutoModelForCausalLM'} as Model; "
        f"Model.from_pretrained({place}).save_pretrained({place})"
    )
    return f"if you trust them, write safetensors with transformers and torch: python -c {shlex.quote(code)}"


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``, refused where the weights are quantised in a way that is not supported."""
    path = folder / "config.json"
    if not path.exists():
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix == ".gguf")
        raise ModelLoadError(_why_no_weights(folder) if names else f"{folder} has no config.json")
    config = read_json(path)
    quantization = config.get("quantization_config") or config.get("compression_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        # transformers leaves "gguf" behind when it writes weights that it dequantised: those are plain
        if method not in ("gguf", *QUANTIZED):
            raise ModelLoadError(f"{folder} is quantised with {str(method)[:80]}, which is not supported yet")
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a ModelLoadError in one sentence."""
    value = _read_json(path)
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} does not hold a JSON object")
    return value


def read_json_list(path: Path) -> list[Any]:
    """A JSON array from a file, or a ModelLoadError in one sentence."""
    value = _read_json(path)
    if not isinstance(value, list):
        raise ModelLoadError(f"{path} does not hold a JSON array")
    return value


def _read_json(path: Path) -> Any:
    content = read_file(path, _MAX_JSON_BYTES)
    # counted first, because empty lists take thirty times their size once they are parsed
    if content.count(b"{") + content.count(b"[") > _MAX_JSON_CONTAINERS:
        raise ModelLoadError(f"{path} has more lists and objects than the limit of {_MAX_JSON_CONTAINERS}")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not valid JSON: {str(error)[:120]}") from None


def eos_from_config(config: Mapping[str, Any], generation: Mapping[str, Any], where: Path) -> tuple[int, ...]:
    """Ids that end an answer: those of ``generation_config.json``, else those of ``config.json``."""
    value = generation.get("eos_token_id")
    if value is None:
        value = config.get("eos_token_id")
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise ModelLoadError(f"{where}: eos_token_id must be one or several token ids, not {str(value)[:80]}")
    return tuple(dict.fromkeys(ids))


_SAMPLING_RANGES = {
    "temperature": (0.0, 1e6), "top_p": (0.0, 1.0), "top_k": (0, 2**31), "min_p": (0.0, 1.0),
    "repetition_penalty": (0.0, 1e6),
}  # fmt: skip


def sampling_from_config(generation: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The sampling settings that the files recommend, those that change anything.

    ``do_sample: false`` beside them means that they are not in use.
    """
    chosen: dict[str, Any] = {}
    for key, (low, high) in _SAMPLING_RANGES.items():
        value = generation.get(key)
        if value is None or (generation.get("do_sample") is False and key != "repetition_penalty"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ModelLoadError(f"{where}: {key} must be from {low} to {high}, not {shown(value)}")
        if key == "top_k":
            value = int(value)
        if not (key in ("top_k", "top_p", "repetition_penalty") and value == 0):  # 0 turns these off
            chosen[key] = value
    return chosen


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
