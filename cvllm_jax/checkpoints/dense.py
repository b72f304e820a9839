"""Layers that an embedding model has after pooling: the Dense modules of sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from cvllm_jax.checkpoints.folder import FolderWeights, read_json
from cvllm_jax.errors import ModelLoadError

if TYPE_CHECKING:
    from cvllm_jax.checkpoints.checkpoint import Checkpoint

__all__ = ["DENSE_ACTIVATIONS", "GGUF_DENSE", "Dense", "read_dense", "read_dense_weights"]

#: The modules of torch that such a layer may end with, by what each does.
DENSE_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}
GGUF_DENSE = ("dense_2", "dense_3")
"""What llama.cpp calls them, without activations and biases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """``activation(x @ weight.T + bias)`` of pooled vectors."""

    place: str
    """The folder that holds the weights; in GGUF files the name of the tensor."""
    inputs: int
    outputs: int
    bias: bool
    activation: str


def read_dense(folder: Path, place: str) -> Dense:
    """The layer that ``PLACE/config.json`` describes."""
    path = folder / place / "config.json"
    config = read_json(path)
    inputs, outputs = config.get("in_features"), config.get("out_features")
    bias, activation = config.get("bias", True), config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not _is_size(inputs) or not _is_size(outputs) or not isinstance(bias, bool):
        raise ModelLoadError(f"{path} must have in_features and out_features from 1 to {2**16}, and bias true or false")
    if activation not in DENSE_ACTIVATIONS:
        raise ModelLoadError(
            f"{path}: the activation {str(activation)[:80]} is not supported; {', '.join(DENSE_ACTIVATIONS)} are"
        )
    if config.get("use_residual") not in (None, False):
        raise ModelLoadError(f"{path}: use_residual is not supported")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise ModelLoadError(f"{path}: the {key} {str(config[key])[:80]} is not supported; sentence_embedding is")
    return Dense(place=place, inputs=inputs, outputs=outputs, bias=bias, activation=DENSE_ACTIVATIONS[activation])


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= 2**16


def read_dense_weights(
    checkpoint: Checkpoint, layers: Sequence[Dense], width: int
) -> tuple[tuple[np.ndarray, np.ndarray | None], ...]:
    """Weights ``[out, in]`` and biases ``[out]`` in float32.

    Arguments:
      width: numbers of a pooled vector.

    Raises:
      ModelLoadError: the layers do not fit one another, or their files do not fit them.
    """
    weights: list[tuple[np.ndarray, np.ndarray | None]] = []
    for layer in layers:
        if layer.inputs != width:
            raise ModelLoadError(f"{layer.place} of {checkpoint.path} takes {layer.inputs} numbers, and gets {width}")
        width = layer.outputs
        if checkpoint.format == "gguf":
            weights.append((checkpoint.read(f"{layer.place}.weight").astype(np.float32), None))
        else:
            weights.append(_from_folder(checkpoint.path / layer.place, layer))
    return tuple(weights)


def _from_folder(folder: Path, layer: Dense) -> tuple[np.ndarray, np.ndarray | None]:
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (layer.outputs, layer.inputs)}
    if layer.bias:
        shapes["linear.bias"] = (layer.outputs,)
    files = FolderWeights(folder)
    try:
        found = {name: tensor.shape for name, tensor in files.tensors.items()}
        if found != shapes:
            raise ModelLoadError(f"{folder} must hold the tensors {shapes}, and holds {str(found)[:200]}")
        weight = files.read("linear.weight").astype(np.float32)
        return weight, files.read("linear.bias").astype(np.float32).reshape(-1) if layer.bias else None
    finally:
        files.close()
