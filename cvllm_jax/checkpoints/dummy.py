"""Models of real shapes with random weights, made on the device, so that speed is measured without downloads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cvllm_jax.checkpoints.checkpoint import Checkpoint
from cvllm_jax.checkpoints.folder import read_config
from cvllm_jax.checkpoints.loading import OFFSETS, SCALES
from cvllm_jax.checkpoints.quantizing import LARGEST, METHODS
from cvllm_jax.checkpoints.text_part import text_config
from cvllm_jax.config import Progress
from cvllm_jax.errors import DeviceError, ModelLoadError, shown

__all__ = ["SHAPES", "NoWeights", "open_dummy", "random_weights"]

#: What Hugging Face folders initialise weights with: logits stay near 1, whatever the depth.
STANDARD_DEVIATION = 0.02

#: How many standard deviations from 0 the largest value of a quantised weight is.
DEVIATIONS = 3.0

_LLAMA_3 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
_LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

#: By name, what decides shapes and arithmetic in the ``config.json`` of the model that the name stands for.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-3.1-8b": _LLAMA_3  # meta-llama/Llama-3.1-8B
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "rope_scaling": _LLAMA_3_ROPE | {"factor": 8.0},
        "tie_word_embeddings": False,
    },
    "llama-3.2-1b": _LLAMA_3  # meta-llama/Llama-3.2-1B
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "rope_scaling": _LLAMA_3_ROPE | {"factor": 32.0},
        "tie_word_embeddings": True,
    },
    "mistral-7b": {  # mistralai/Mistral-7B-v0.3
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": 32768,
        "max_position_embeddings": 32768,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
}


def open_dummy(source: str) -> Checkpoint:
    """A checkpoint without tensors: a shape by its name, or a folder's ``config.json`` without its weights.

    Its end-of-sequence token is that of :func:`cvllm_jax.text.byte_tokenizer.byte_tokenizer`.

    Raises:
      ModelLoadError: neither a name of :data:`SHAPES` nor a folder with a ``config.json``.
    """
    folder = Path(source).expanduser()
    if source in SHAPES:
        config = dict(SHAPES[source])
    elif os.path.isfile(folder / "config.json"):  # False for names that no file can have
        config = read_config(folder)
        config = text_config(config) or config
    else:
        raise ModelLoadError(
            f"{shown(source)} is no shape with random weights and no folder with a config.json; "
            f"the shapes are {', '.join(SHAPES)}"
        )
    vocab_size = config.get("vocab_size")
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int):
        raise ModelLoadError(f"{source} gives no vocab_size in its config.json")
    return Checkpoint(
        name=source if source in SHAPES else folder.resolve().name,
        path=folder,
        format="dummy",
        config=config,
        eos_token_ids=(vocab_size - 1,),
        generation_defaults={},
        tensors={},
        fingerprint=f"dummy {source}",
        _weights=NoWeights(),
    )


def random_weights(
    structs: Mapping[str, jax.ShapeDtypeStruct],
    shardings: Mapping[str, jax.sharding.Sharding],
    progress: Progress | None = None,
    *,
    bytes_of: Mapping[str, str] = {},
) -> dict[str, jax.Array]:
    """Weights by name, the same in every run: gains of norms are 1, biases 0, the rest is normally distributed.

    Each is computed where its sharding places it; nothing passes through the host.

    Arguments:
      bytes_of: as for :func:`cvllm_jax.checkpoints.loading.load_weights`.

    Raises:
      DeviceError: they do not fit on the device.
    """
    programs: dict[Any, Callable[..., jax.Array]] = {}
    weights = {}
    for index, (name, struct) in enumerate(structs.items()):
        vector = None if len(struct.shape) > 1 else 0.0 if name.endswith("_bias") else 1.0
        if name.endswith(OFFSETS):
            vector = 0.0
        if name.endswith(SCALES):
            of = name.removesuffix(SCALES)
            stored = METHODS[bytes_of[of]] if of in bytes_of else np.dtype(structs[of].dtype)
            vector = DEVIATIONS * STANDARD_DEVIATION / LARGEST[stored]
        method = bytes_of.get(name)
        key = (struct.shape, struct.dtype, shardings[name], vector, method)
        if key not in programs:  # a layer's shapes are those of the layer before
            make = partial(_fill, struct.shape, struct.dtype, vector, method)
            programs[key] = jax.jit(make, out_shardings=shardings[name])
        try:
            weights[name] = programs[key](np.uint32(index)).block_until_ready()
        except jax.errors.JaxRuntimeError as error:
            size = sum(weight.nbytes for weight in weights.values())
            raise DeviceError(
                f"the device had no room for random weights beyond {size / 2**30:.1f} GiB; "
                f"choose a smaller shape or dtype ({str(error).splitlines()[0]})"
            ) from error
        if progress is not None:
            progress("making random weights", index + 1, len(structs))
    return weights


def _fill(
    shape: tuple[int, ...], dtype: Any, constant: float | None, method: str | None, index: jax.Array
) -> jax.Array:
    if constant is not None:
        return jnp.full(shape, constant, dtype)
    stored = np.dtype(dtype) if method is None else METHODS[method]
    if method in ("int4", "mxfp4"):
        shape = (*shape, 2)  # in a byte
    key = jax.random.fold_in(jax.random.key(0), index)
    numbers = jax.random.normal(key, shape, jnp.float32)
    if (largest := LARGEST.get(stored)) is None:
        return (numbers * STANDARD_DEVIATION).astype(dtype)
    numbers = jnp.clip(numbers * (largest / DEVIATIONS), -largest, largest)
    values = (jnp.round(numbers) if jnp.issubdtype(stored, jnp.integer) else numbers).astype(stored)
    return values if method is None else lax.bitcast_convert_type(values, dtype)


class NoWeights:
    """What a checkpoint without tensors reads them with."""

    def read(self, name: str, start_row: int = 0, stop_row: int | None = None) -> np.ndarray:
        raise ModelLoadError(f"this checkpoint has no tensor {name!r} to read")

    def packed(self, name: str, start_row: int, stop_row: int) -> None:
        """There are no tensors."""

    def layout(self, name: str) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing is open."""
