"""From a model to a prepared checkpoint of it: its weights as an engine would have them, on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from cvllm_jax.checkpoints.preparing import check_place, write_prepared
from cvllm_jax.checkpoints.quantizing import StoredLayout
from cvllm_jax.config import EngineConfig
from cvllm_jax.engine.devices import mesh_of
from cvllm_jax.engine.loading import Weights, open_model, place_weights, prepare_device
from cvllm_jax.engine.weight_layouts import target_name, weight_layouts
from cvllm_jax.errors import ConfigError
from cvllm_jax.models.layers import Weighted, WeightLayout
from cvllm_jax.models.registry import family_for

__all__ = ["Converted", "convert"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a conversion has made."""

    path: Path
    size: int
    """Bytes of all files."""
    quantization: str | None
    """The method that weights are in; None for plain numbers."""
    dtype: str


def convert(config: EngineConfig, out: str | Path, *, overwrite: bool = False) -> Converted:
    """Write the weights that an engine of this configuration would load, in a form that loads without converting.

    Memory holds the weights as the engine has them and one matrix of the source more.

    Arguments:
      config: model, quantization, dtype and device as for an engine; the other settings do not matter.
      out: the folder to make.
      overwrite: replace a prepared checkpoint that is there.

    Raises:
      ModelLoadError, ConfigError, DeviceError: the model cannot be loaded like this.
      IoError, OtherError: the folder is taken, or cannot be written.
    """
    out = Path(os.path.abspath(Path(out).expanduser()))
    check_place(out, overwrite=overwrite)
    config = replace(config, kernels="xla")  # nothing is multiplied here
    _, device, dtype = prepare_device(config)
    with open_model(config) as checkpoint:
        if checkpoint.format in ("dummy", "scripted"):
            raise ConfigError(f"{checkpoint.name} has no weights to convert", param="model_path")
        family = family_for(checkpoint.config)
        model = family.config(checkpoint.config)
        layouts = weight_layouts(config, checkpoint, dtype, device, family, model)
        weights = place_weights(family, model, checkpoint, dtype, mesh_of([device]), config, layouts)
        named, stored = _by_name(weights), _stored_layouts(weights)
        quantization: Mapping[str, Any] | None = None
        if stored:
            uniform = isinstance(layouts, WeightLayout)
            method = layouts.method if isinstance(layouts, WeightLayout) else checkpoint.quantization
            size = layouts.group_size if isinstance(layouts, WeightLayout) else None
            quantization = {"method": method, "group_size": size, "uniform": uniform}
        written = write_prepared(out, checkpoint, named, stored, quantization, overwrite=overwrite)
    method = None if quantization is None else quantization["method"]
    return Converted(path=out, size=written, quantization=method, dtype=str(jax.numpy.dtype(dtype)))


def _by_name(weights: Weights) -> dict[str, jax.Array]:
    state = jax.tree.unflatten(weights.treedef, weights.leaves)
    return {target_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def _stored_layouts(weights: Weights) -> dict[str, StoredLayout]:
    """By dotted path what a module's weights are stored in."""
    module = nnx.merge(weights.graph, jax.tree.unflatten(weights.treedef, weights.leaves))
    return {
        ".".join(map(str, path)): StoredLayout(part.layout.method, part.layout.group_size, part.layout.offsets)
        for path, part in nnx.iter_modules(module)
        if isinstance(part, Weighted) and part.layout is not None
    }
