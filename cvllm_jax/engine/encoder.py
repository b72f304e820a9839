"""The embed program: texts of tokens to vectors, without a cache.

    embed(leaves, dense, vector) -> f32 [B, D]       B texts, padded to L tokens each

It is compiled for a few sizes of B and L. One int32 vector holds a batch, so a step is one transfer each way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cvllm_jax.checkpoints.pooling import Pooling, PoolingMode
from cvllm_jax.config import Progress
from cvllm_jax.engine.batch import Layout
from cvllm_jax.engine.devices import return_freed_memory
from cvllm_jax.engine.loading import Weights
from cvllm_jax.engine.programs import Programs, environment_key
from cvllm_jax.engine.xla_options import compiler_options
from cvllm_jax.models.registry import Encoder

__all__ = ["EmbedShape", "EncoderRunner", "embed_shapes", "pool"]

#: Lengths that texts are padded to, each half of the next; with one row or many that is ten programs.
LENGTHS = 5
#: Models of long texts have more of them, so that a short one is padded to so many tokens at most.
SHORT = 64
#: What ends the layers behind the pooling.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
}

#: A matrix ``[out, in]`` and perhaps a bias ``[out]`` for each layer behind the pooling.
type DenseWeights = tuple[tuple[np.ndarray, np.ndarray | None], ...]


@dataclass(frozen=True, slots=True)
class EmbedShape:
    """``rows`` texts of up to ``length`` tokens."""

    rows: int
    length: int

    def layout(self) -> Layout:
        return Layout({"tokens": ((self.rows, self.length), np.int32), "counts": ((self.rows,), np.int32)})

    def pack(self, texts: Items[Items[int]]) -> np.ndarray:
        vector, views = self.layout().new()
        views["counts"][:] = 1  # a row of padding is a text of one token: a mean over none would be NaN
        for row, tokens in enumerate(texts):
            views["tokens"][row, : len(tokens)] = tokens
            views["counts"][row] = len(tokens)
        return vector


def embed_shapes(longest: int, tokens: int, most_rows: int) -> tuple[EmbedShape, ...]:
    """Sizes to compile for: at most ``tokens`` tokens and ``most_rows`` texts a step, one text of ``longest`` at least.

    Sorted by length, and of one length the smaller first.
    """
    count = max(LENGTHS, 1 + math.ceil(math.log2(longest / SHORT)))
    lengths = sorted({-(-longest // 2**halvings) for halvings in range(count)})
    return tuple(
        EmbedShape(rows, length)
        for length in lengths
        for rows in sorted({1, max(1, min(most_rows, tokens // length))})
    )


def pool(hidden: Float[Array, "B L D"], counts: Int[Array, "B"], mode: PoolingMode) -> Float[Array, "B D"]:
    """One vector a text, of the hidden states of its ``counts`` tokens, in f32."""
    hidden = hidden.astype(jnp.float32)
    real = (jnp.arange(hidden.shape[1], dtype=jnp.int32) < counts[:, None])[..., None]
    match mode:
        case "cls":
            return hidden[:, 0]
        case "lasttoken":
            return jnp.take_along_axis(hidden, (counts - 1)[:, None, None], axis=1)[:, 0]
        case "max":
            return jnp.where(real, hidden, -jnp.inf).max(1)
        case "mean" | "mean_sqrt_len_tokens":
            count = counts[:, None].astype(jnp.float32)
            return jnp.where(real, hidden, 0).sum(1) / (count if mode == "mean" else jnp.sqrt(count))


class EncoderRunner:
    """Weights and compiled programs of an encoder: the only part of its engine that touches the device."""

    def __init__(
        self, weights: Weights, pooling: Pooling, shapes: tuple[EmbedShape, ...], mesh: Mesh, *,
        store: Path | None, model_key: str, dense: DenseWeights = (),
    ) -> None:  # fmt: skip
        self.shapes = shapes
        self._weights, self._pooling = weights, pooling
        self._leaves = weights.leaves
        self._replicated = NamedSharding(mesh, P())
        self._dense = jax.device_put(dense, self._replicated)
        self._device = mesh.devices.flat[0]
        self._autotune_cache = None if store is None else store.parent / "autotune"
        platform = f"{self._device.platform} {self._device.device_kind}"
        self.programs = Programs(f"{environment_key()}\n{platform}\n{model_key}\n{pooling}", store)

    def shape_for(self, longest: int, texts: int) -> EmbedShape:
        """The smallest size that takes ``longest`` tokens, with room for ``texts`` where there is one."""
        fitting = [shape for shape in self.shapes if shape.length >= longest]
        same = [shape for shape in fitting if shape.length == fitting[0].length]
        return next((shape for shape in same if shape.rows >= texts), same[-1])

    def embed(self, texts: Items[Items[int]]) -> Float[np.ndarray, "B D"]:
        """Vectors of texts that fit one size."""
        shape = self.shape_for(max(map(len, texts)), len(texts))
        vector = jax.device_put(shape.pack(texts), self._replicated)
        return np.asarray(self._program(shape)(self._leaves, self._dense, vector))[: len(texts)]

    def warm_up(self, progress: Progress | None = None) -> None:
        """Compile or load every program and run it once."""
        for done, shape in enumerate(self.shapes):
            if progress is not None:
                progress("compiling steps", done, len(self.shapes))
            self.embed([[0] * shape.length] * shape.rows)
        if progress is not None:
            progress("compiling steps", len(self.shapes), len(self.shapes))
        return_freed_memory()

    def close(self) -> None:
        """Let go of weights and programs."""
        self._leaves = self._dense = ()
        self._weights = self._weights._replace(leaves=())
        self.programs.clear()
        return_freed_memory()

    def _program(self, shape: EmbedShape) -> Any:
        def build() -> Any:
            vector = jax.ShapeDtypeStruct((shape.layout().size,), jnp.int32, sharding=self._replicated)
            return jax.jit(partial(self._embed, shape)).lower(self._leaves, self._dense, vector)

        options = compiler_options(
            self._device, "prefill", enable_cuda_graph=False, autotune_cache=self._autotune_cache
        )
        return self.programs.get(f"embed {shape.rows}x{shape.length}", build, options)

    def _embed(self, shape: EmbedShape, leaves: Any, dense: Any, vector: Int[Array, "S"]) -> Float[Array, "B D"]:
        fields = shape.layout().unpack(vector)
        model: Encoder = nnx.merge(self._weights.graph, jax.tree.unflatten(self._weights.treedef, leaves))
        vectors = pool(model(fields["tokens"], fields["counts"]), fields["counts"], self._pooling.mode)
        for layer, (weight, bias) in zip(self._pooling.dense, dense, strict=True):
            vectors = jnp.einsum("bi,oi->bo", vectors, weight, precision=jax.lax.Precision.HIGHEST)
            vectors = ACTIVATIONS[layer.activation](vectors if bias is None else vectors + bias)
        if self._pooling.normalize:
            vectors /= jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return vectors
