"""What a model's weights will be, known before any is read: programs are made from this alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cvllm_jax.checkpoints.checkpoint import Checkpoint
from cvllm_jax.engine.weight_layouts import target_name
from cvllm_jax.errors import ConfigError
from cvllm_jax.models.layers import Weighted
from cvllm_jax.models.quantizing import CannotQuantizeError, Layouts, quantize_weights
from cvllm_jax.models.registry import Family, ModelConfig

__all__ = ["Outline", "outline_weights"]


class Outline(NamedTuple):
    """A model's structure, and the shape, type and place of each weight by its name."""

    graph: nnx.GraphDef[Any]
    treedef: Any
    structs: dict[str, jax.ShapeDtypeStruct]
    shardings: dict[str, NamedSharding]
    bytes_of: Mapping[str, str]
    """The method of those weights whose values are stored in bytes."""

    @property
    def nbytes(self) -> int:
        return sum(math.prod(s.shape) * jnp.dtype(s.dtype).itemsize for s in self.structs.values())

    @property
    def leaves(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """In the order in which steps take them."""
        return tuple(
            jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=self.shardings[name])
            for name, struct in self.structs.items()
        )


def outline_weights(
    family: Family, model_config: ModelConfig, checkpoint: Checkpoint, dtype: Any, mesh: Mesh, layouts: Layouts = None
) -> Outline:
    """The outline of a model whose weights are in these layouts.

    Raises:
      ConfigError: the model has weights that the layout does not fit.
    """

    def make() -> nnx.Module:
        model = family.module(model_config, dtype)
        if layouts is not None:
            quantize_weights(model, layouts)
        return model

    try:
        abstract = nnx.eval_shape(make)
    except CannotQuantizeError as error:
        raise ConfigError(f"{checkpoint.name} cannot be quantized: {error}", param="quantization") from None
    graph, state = nnx.split(abstract, nnx.Param)
    paths, treedef = jax.tree_util.tree_flatten_with_path(state)
    structs, shardings = {}, {}
    bytes_of = {
        ".".join(map(str, path)): module.layout.bytes_of
        for path, module in nnx.iter_modules(abstract)
        if isinstance(module, Weighted) and module.layout is not None and module.layout.bytes_of is not None
    }
    for (path, leaf), parameter in zip(
        paths, jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Param)), strict=True
    ):
        name = target_name(path)
        structs[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        shardings[name] = NamedSharding(mesh, parameter.get_metadata("spec", P()))
    return Outline(graph, treedef, structs, shardings, bytes_of)
