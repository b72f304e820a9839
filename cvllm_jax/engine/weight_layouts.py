"""How the weights of a model are stored and multiplied: as was asked, as the files have them, or what suits the device.

A file in few bits stays so, each weight in the layout that holds it as it is. GGUF files are the exception on CPUs:
they become int8 with one scale a row, which is what CPUs multiply fastest, and whose error is small beside the file's
(``docs/quantization.md``). In float32, asked for or because the CPU has no bfloat16, GGUF files are plain numbers.
"""

from __future__ import annotations

import importlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cvllm_jax.checkpoints.cache import cache_dir
from cvllm_jax.checkpoints.checkpoint import Checkpoint
from cvllm_jax.checkpoints.loading import stored_layouts
from cvllm_jax.checkpoints.mappings.rules import Rule
from cvllm_jax.checkpoints.prepared import PreparedCheckpoint
from cvllm_jax.checkpoints.quantizing import StoredLayout
from cvllm_jax.config import EngineConfig, QuantizationConfig
from cvllm_jax.engine.kernels import choose_matmul
from cvllm_jax.errors import ConfigError
from cvllm_jax.models.layers import WeightLayout
from cvllm_jax.models.quantizing import Layouts
from cvllm_jax.models.registry import Family, ModelConfig
from cvllm_jax.testing import ScriptedCheckpoint

__all__ = ["method_of", "rules_of", "target_name", "trials", "weight_layouts"]

log = logging.getLogger("cvllm_jax.engine")


def weight_layouts(
    config: EngineConfig, checkpoint: Checkpoint, dtype: Any, device: jax.Device, family: Family, model: ModelConfig
) -> Layouts:
    """The layouts of a model's weights; None for plain numbers.

    Raises:
      ConfigError: it was asked for what the model or the device does not do.
    """
    asked, on_cpu = config.quantization, device.platform == "cpu"
    if isinstance(checkpoint, PreparedCheckpoint) and checkpoint.layouts:
        _require_prepared(asked, checkpoint)
        return _each(checkpoint.layouts, dtype, device, config)
    if asked is not None:
        if asked.method == "none":
            return None
        if isinstance(checkpoint, ScriptedCheckpoint):
            raise ConfigError("a scripted model has no weights to quantize", param="quantization")
        group_size = asked.group_size or (32 if asked.method == "int4" else None)
        layout = WeightLayout(
            method=asked.method, group_size=group_size, offsets=asked.method == "int4", in_bytes=on_cpu
        )
        return _multiplied(layout, dtype, device, config)
    if checkpoint.quantization is None:
        return None
    if checkpoint.format == "gguf" and on_cpu:
        if dtype == jnp.float32:
            return None
        log.info(
            "weights: %s of the file as int8, which CPUs multiply fastest; quantization none keeps %s",
            checkpoint.quantization, jnp.dtype(dtype),
        )  # fmt: skip
        return _multiplied(WeightLayout(method="int8"), dtype, device, config)
    return _kept(config, checkpoint, dtype, device, family, model)


def _kept(
    config: EngineConfig, checkpoint: Checkpoint, dtype: Any, device: jax.Device, family: Family, model: ModelConfig
) -> dict[str, WeightLayout] | None:
    """By weight the layout that keeps what the file has; None where it has nothing to keep."""
    state = nnx.state(nnx.eval_shape(lambda: family.module(model, dtype)), nnx.Param)
    structs = {
        target_name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }
    kept = stored_layouts(checkpoint, rules_of(family), structs)
    if "embed" in kept:  # one scale a token is what can be looked up
        kept["embed"] = replace(kept["embed"], method="int8", group_size=None, offsets=False)
    counts = Counter(
        f"{layout.method}:{layout.group_size}" if layout.group_size else layout.method for layout in kept.values()
    )
    what = ", ".join(f"{count} as {layout}" for layout, count in counts.most_common())
    log.info("weights: %s of the file is kept, %s", checkpoint.quantization, what or "none of it in few bits")
    return _each(kept, dtype, device, config) or None


def _each(
    kept: Mapping[str, StoredLayout], dtype: Any, device: jax.Device, config: EngineConfig
) -> dict[str, WeightLayout]:
    """Layouts of files as those of the device."""
    made: dict[StoredLayout, WeightLayout] = {}
    for stored in dict.fromkeys(kept.values()):
        layout = WeightLayout(
            method=stored.method, group_size=stored.group_size, offsets=stored.offsets,
            in_bytes=device.platform == "cpu" or stored.method == "mxfp4",
        )  # fmt: skip
        made[stored] = _multiplied(layout, dtype, device, config)
    return {name: made[layout] for name, layout in kept.items()}


def _require_prepared(asked: QuantizationConfig | None, checkpoint: PreparedCheckpoint) -> None:
    """Refuse another quantization than the one that a checkpoint was prepared with."""
    if asked is None:
        return
    wanted = (asked.method, asked.group_size or (32 if asked.method == "int4" else None))
    if wanted != checkpoint.rounded_to:
        raise ConfigError(
            f"{checkpoint.name} was prepared with weights in {checkpoint.method} and cannot be loaded with the "
            f"quantization {asked.method}: convert its source again",
            param="quantization",
        )


def _multiplied(layout: WeightLayout, dtype: Any, device: jax.Device, config: EngineConfig) -> WeightLayout:
    """The layout with what multiplies it on the device."""
    if device.platform == "cpu":
        # what the kernel does is in every layout: at least the head's int8
        choice = choose_matmul(WeightLayout(method="int8"), dtype, device, config.kernels, store=trials(config))
        log.info("int8 weights with one scale a row: %s, because %s", *choice)
        return replace(layout, implementation="native" if choice.implementation == "native" else "auto")
    choice = choose_matmul(layout, dtype, device, config.kernels, store=trials(config))
    log.info("quantized weights in %s: %s, because %s", layout.method, *choice)
    return replace(layout, implementation="auto" if choice.implementation == "hopper" else "xla")


def trials(config: EngineConfig) -> Path | None:
    """The folder that remembers which trials kernels have passed."""
    return cache_dir() / "kernel-trials" if config.compilation_cache else None


def rules_of(family: Family) -> tuple[Rule, ...]:
    """Which tensors make up the weights of a family."""
    rules: tuple[Rule, ...] = importlib.import_module(f"cvllm_jax.checkpoints.mappings.{family.name}").RULES
    return rules


def target_name(path: tuple[Any, ...]) -> str:
    """``layers.0.attention.qkv`` for the weight of that module, ``layers.0.attention.qkv_bias`` for its bias."""
    parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
    name = ".".join(part for part in parts if part != "value")
    if name.endswith(".bias"):
        return name.removesuffix(".bias") + "_bias"
    return name.removesuffix(".weight")


def method_of(layouts: Layouts, stored: str | None) -> str | None:
    """What an engine says of its weights: the method they were rounded to, or the file's own; None: plain numbers.

    Arguments:
      stored: the type that most tensors of the file have.
    """
    return layouts.method if isinstance(layouts, WeightLayout) else None if layouts is None else stored
