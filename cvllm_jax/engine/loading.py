"""From a configuration to something that runs: checkpoint, weights on the device, page pool, runner."""

from __future__ import annotations

import logging
import math
import operator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from cvllm_jax.checkpoints.cache import cache_dir
from cvllm_jax.checkpoints.checkpoint import Checkpoint, open_checkpoint
from cvllm_jax.checkpoints.dummy import open_dummy, random_weights
from cvllm_jax.checkpoints.loading import OFFSETS, SCALES, load_weights
from cvllm_jax.checkpoints.prepared import PreparedCheckpoint
from cvllm_jax.config import Device, EngineConfig
from cvllm_jax.engine.devices import (
    claim_gpu_memory,
    find_device,
    free_memory,
    geometry_of,
    mesh_of,
    resolve_dtype,
    step_shapes,
)
from cvllm_jax.engine.kernels import choose_kernels
from cvllm_jax.engine.outline import Outline, outline_weights
from cvllm_jax.engine.pool_sizes import page_bytes, pages_for
from cvllm_jax.engine.programs import Programs, environment_key
from cvllm_jax.engine.runner import Runner, buffer_structs
from cvllm_jax.engine.steps import RunnerSettings, Steps
from cvllm_jax.engine.warm_up import WarmUp
from cvllm_jax.engine.weight_layouts import method_of, rules_of, trials, weight_layouts
from cvllm_jax.errors import ConfigError, DeviceError, WrongEngineError
from cvllm_jax.info import ModelInfo
from cvllm_jax.models.quantizing import Layouts
from cvllm_jax.models.registry import Family, ModelConfig, family_for
from cvllm_jax.testing import SCHEME, SCRIPTED, ScriptedCheckpoint, open_scripted
from cvllm_jax.text import ChatTemplate, Tokenizer
from cvllm_jax.text.byte_tokenizer import BYTE_CHAT_TEMPLATE, byte_tokenizer

__all__ = ["Loaded", "Weights", "describe", "find_family", "load", "open_model", "place_weights", "prepare_device"]

log = logging.getLogger("cvllm_jax.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Everything that an engine is made of besides its loop."""

    runner: Runner
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    info: ModelInfo


class Weights(NamedTuple):
    """A model's structure, and its weights on the device as the flat list that steps take."""

    graph: nnx.GraphDef[Any]
    treedef: Any
    leaves: tuple[jax.Array, ...]
    parameters: int
    """Numbers that the model has learnt: without the scales of quantised weights."""


def load(config: EngineConfig) -> Loaded:
    """Read the checkpoint, place the weights, size the pool and, if asked, compile every step.

    Raises:
      ModelLoadError, TokenizationError, ConfigError, DeviceError: what cannot be found, read or honoured;
        WrongEngineError if the model does not generate text.
    """
    asked, device, dtype = prepare_device(config)
    mesh = mesh_of([device])
    with open_model(config) as checkpoint:
        family = find_family(checkpoint, "causal")
        model_config = family.config({**checkpoint.config, "max_sequence_length": config.max_sequence_length})
        layouts = weight_layouts(config, checkpoint, dtype, device, family, model_config)
        outline = outline_weights(family, model_config, checkpoint, dtype, mesh, layouts)
        prepare = partial(_prepare_steps, config, family, model_config, checkpoint.name, dtype, mesh, layouts, outline)
        # a CPU's steps are loaded while the weights are read; on other devices weights decide how many pages there are
        steps = prepare() if device.platform == "cpu" else None
        tokenizer, chat_template = _text(checkpoint, model_config)
        weights = place_weights(family, model_config, checkpoint, dtype, mesh, config, layouts, outline)
    if steps is None:
        steps = prepare()
    settings = steps.settings
    try:
        runner = Runner(steps, weights.leaves, model_config, mesh, debug=config.debug)
        if config.warmup:
            runner.warm_up(config.progress)
    except jax.errors.JaxRuntimeError as error:
        size = sum(map(operator.mul, settings.num_pages, page_bytes(model_config, settings.geometry))) / 2**30
        raise DeviceError(
            f"the device failed while a KV cache of {size:.2f} GiB was set up and steps were compiled"
            f"{free_memory(device)}: {str(error).splitlines()[0]}; "
            "lower kv_cache_memory, max_batch_size or prefill_chunk_size"
        ) from error
    info = describe(
        checkpoint, family, model_config, dtype, asked, settings.max_sequence_length, weights.parameters, layouts
    )
    return Loaded(runner=runner, tokenizer=tokenizer, chat_template=chat_template, info=info)


def _prepare_steps(
    config: EngineConfig, family: Family, model_config: ModelConfig, name: str, dtype: Any, mesh: Mesh,
    layouts: Layouts, outline: Outline,
) -> Steps:  # fmt: skip
    """The steps of a model; on a CPU those that come first are being loaded."""
    device = mesh.devices.flat[0]
    geometry = geometry_of(config, model_config, dtype)
    if geometry.experts is not None and layouts is not None:
        geometry = replace(geometry, experts=geometry.experts._replace(quantized=True))
    choices = choose_kernels(geometry, device, config.kernels, store=trials(config))
    for operation in ("attention", "kv_write", "experts"):
        log.info("%s: %s, because %s", operation, *getattr(choices, operation))
    if config.enable_prefix_caching and model_config.recurrent is not None:
        log.info("prefixes are not cached: %s has recurrent layers", name)
    if config.num_speculative_tokens and model_config.recurrent is not None:
        raise ConfigError(
            f"{name} has recurrent layers, whose state cannot go back to before a wrong guess: "
            "num_speculative_tokens must be 0",
            param="num_speculative_tokens",
        )
    shapes = step_shapes(config, device.platform)
    to_come = outline.nbytes if device.platform == "cpu" else 0
    num_pages, max_sequence_length = pages_for(config, model_config, geometry, device, shapes, to_come=to_come)
    settings = RunnerSettings(
        max_batch_size=config.max_batch_size,
        max_sequence_length=max_sequence_length,
        page_size=config.page_size,
        groups=model_config.cache_groups,
        num_pages=num_pages,
        steps=shapes,
        geometry=geometry,
        kernels=choices.kernels,
        enable_cuda_graph=config.enable_cuda_graph,
    )
    store = cache_dir() if config.compilation_cache else None
    model = f"{family.name} {dtype} {layouts}\n{model_config}\n{settings}"
    key = f"{environment_key()}\n{device.platform} {device.device_kind}\n{model}"
    steps = Steps(
        outline.graph, outline.treedef, model_config.vocab_size, settings,
        Programs(key, None if store is None else store / "executables"),
        (outline.leaves, *buffer_structs(model_config, settings, mesh)),
        autotune_cache=None if store is None else store / "autotune",
    )  # fmt: skip
    if config.warmup and shapes.first_prefill is not None:
        WarmUp.prefetch(steps)
    return steps


def prepare_device(config: EngineConfig) -> tuple[Device, jax.Device, Any]:
    """The device as asked for, JAX's name of it, and the type to compute in."""
    claim_gpu_memory()
    asked = config.device or Device.best_available()
    device = find_device(asked)
    return asked, device, resolve_dtype(config.dtype, device)


def find_family(checkpoint: Checkpoint, kind: Literal["causal", "encoder"]) -> Family:
    """The checkpoint's family, or a WrongEngineError that names the engine it is for."""
    family = SCRIPTED if isinstance(checkpoint, ScriptedCheckpoint) else family_for(checkpoint.config)
    if family.kind != kind:
        does, engine = {
            "causal": ("generates text and has no embeddings", "InferenceEngine"),
            "encoder": ("gives embeddings and generates no text", "EmbeddingEngine"),
        }[family.kind]
        raise WrongEngineError(
            f"{checkpoint.name} ({family.architectures[0]}) {does}; load it with {engine}, or serve it"
        )
    return family


def open_model(config: EngineConfig) -> Checkpoint:
    """The checkpoint that a configuration names; its caller closes it."""
    if config.model_path.startswith(SCHEME):
        if config.load_format != "auto" or config.revision is not None:
            raise ConfigError("a scripted model takes neither a load_format nor a revision", param="model_path")
        return open_scripted(config.model_path)
    if config.load_format == "auto":
        return open_checkpoint(config.model_path, revision=config.revision, progress=config.progress)
    if config.revision is not None:
        raise ConfigError("a revision belongs to a hub id, and load_format is dummy", param="revision")
    return open_dummy(config.model_path)


def _text(checkpoint: Checkpoint, model: ModelConfig) -> tuple[Tokenizer, ChatTemplate | None]:
    if checkpoint.format == "dummy":
        tokenizer = byte_tokenizer(model.vocab_size)
        return tokenizer, ChatTemplate(BYTE_CHAT_TEMPLATE, tokenizer=tokenizer)
    if isinstance(checkpoint, ScriptedCheckpoint):
        return checkpoint.tokenizer, checkpoint.chat_template
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    return tokenizer, ChatTemplate.from_checkpoint(checkpoint, tokenizer)


def place_weights(
    family: Family, model_config: ModelConfig, checkpoint: Checkpoint, dtype: Any, mesh: Mesh, config: EngineConfig,
    layouts: Layouts = None, outline: Outline | None = None,
) -> Weights:  # fmt: skip
    """Read every weight of the model onto the device, quantised to layouts or as it is.

    Arguments:
      outline: that of the model, where it was made before.

    Raises:
      ModelLoadError: the checkpoint's tensors do not fit the model.
      ConfigError: the model has weights that the layout does not fit.
      DeviceError: the weights do not fit into the device's memory.
    """
    if outline is None:
        outline = outline_weights(family, model_config, checkpoint, dtype, mesh, layouts)
    graph, treedef, structs, shardings, bytes_of = outline
    try:
        if checkpoint.format == "dummy":
            weights = random_weights(structs, shardings, config.progress, bytes_of=bytes_of)
        elif isinstance(checkpoint, ScriptedCheckpoint):
            weights = {name: jax.device_put(checkpoint.weights[name], shardings[name]) for name in structs}
        elif isinstance(checkpoint, PreparedCheckpoint) and (checkpoint.layouts or layouts is None):
            weights = checkpoint.place(structs, shardings, config.progress)
        else:
            rules = checkpoint.rules() if isinstance(checkpoint, PreparedCheckpoint) else rules_of(family)
            weights = load_weights(
                checkpoint, rules, structs, lambda name, array: jax.device_put(array, shardings[name]),
                config.progress, bytes_of=bytes_of,
            )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        raise DeviceError(
            f"the weights take {outline.nbytes / 2**30:.1f} GiB on the device and did not fit"
            f"{free_memory(mesh.devices.flat[0])}; choose a smaller model or dtype ({str(error).splitlines()[0]})"
        ) from error
    parameters = sum(
        math.prod(structs[name].shape) * (1 if bytes_of.get(name, "fp8") == "fp8" else 2)
        for name in structs
        if not name.endswith((SCALES, OFFSETS))
    )
    return Weights(graph, treedef, tuple(weights[name] for name in structs), parameters)


def describe(
    checkpoint: Checkpoint, family: Family, model: ModelConfig, dtype: Any, device: Device, max_sequence_length: int,
    parameters: int, layouts: Layouts = None,
) -> ModelInfo:  # fmt: skip
    """What an engine says of the model it has loaded."""
    return ModelInfo(
        name=checkpoint.name,
        architecture=(checkpoint.config.get("architectures") or [family.architectures[0]])[0],
        parameters=parameters,
        vocab_size=model.vocab_size,
        context_length=model.context_length,
        max_sequence_length=max_sequence_length,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        head_dim=model.head_dim,
        dtype=str(jnp.dtype(dtype)),
        quantization=method_of(layouts, checkpoint.quantization),
        device=str(device),
        eos_token_ids=tuple(checkpoint.eos_token_ids),
        generation_defaults=dict(checkpoint.generation_defaults),
        kind=family.kind,
    )
