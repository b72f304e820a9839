"""From a configuration to something that runs: checkpoint, weights on the device, page pool, runner."""

from __future__ import annotations

import logging
import math
import operator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

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
    return_freed_memory,
    step_shapes,
)
from cvllm_jax.engine.kernels import choose_kernels
from cvllm_jax.engine.pool_sizes import page_bytes, pages_for
from cvllm_jax.engine.runner import Runner
from cvllm_jax.engine.steps import RunnerSettings
from cvllm_jax.engine.weight_layouts import method_of, rules_of, target_name, trials, weight_layouts
from cvllm_jax.errors import ConfigError, DeviceError, WrongEngineError
from cvllm_jax.models.layers import Weighted
from cvllm_jax.models.quantizing import CannotQuantizeError, Layouts, quantize_weights
from cvllm_jax.models.registry import Family, ModelConfig, family_for
from cvllm_jax.params import ModelInfo
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
    with open_model(config) as checkpoint:
        family = find_family(checkpoint, "causal")
        model_config = family.config({**checkpoint.config, "max_sequence_length": config.max_sequence_length})
        tokenizer, chat_template = _text(checkpoint, model_config)
        mesh = mesh_of([device])
        layouts = weight_layouts(config, checkpoint, dtype, device, family, model_config)
        weights = place_weights(family, model_config, checkpoint, dtype, mesh, config, layouts)
    geometry = geometry_of(config, model_config, dtype)
    if geometry.experts is not None and layouts is not None:
        geometry = replace(geometry, experts=geometry.experts._replace(quantized=True))
    store = cache_dir() if config.compilation_cache else None
    choices = choose_kernels(geometry, device, config.kernels, store=trials(config))
    for name in ("attention", "kv_write", "experts"):
        log.info("%s: %s, because %s", name, *getattr(choices, name))
    if config.enable_prefix_caching and model_config.recurrent is not None:
        log.info("prefixes are not cached: %s has recurrent layers", checkpoint.name)
    shapes = step_shapes(config, device.platform)
    num_pages, max_sequence_length = pages_for(config, model_config, geometry, device, shapes)
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
    try:
        key = f"{family.name} {dtype} {layouts}"
        executables = None if store is None else store / "executables"
        runner = Runner(
            weights.graph, weights.treedef, weights.leaves, model_config, settings, mesh,
            store=executables, model_key=key, debug=config.debug,
        )  # fmt: skip
        if config.warmup:
            runner.warm_up(config.progress)
            return_freed_memory()
    except jax.errors.JaxRuntimeError as error:
        size = sum(map(operator.mul, num_pages, page_bytes(model_config, geometry))) / 2**30
        raise DeviceError(
            f"the device failed while a KV cache of {size:.2f} GiB was set up and steps were compiled"
            f"{free_memory(device)}: {str(error).splitlines()[0]}; "
            "lower kv_cache_memory, max_batch_size or prefill_chunk_size"
        ) from error
    info = describe(
        checkpoint, family, model_config, dtype, asked, max_sequence_length, weights.parameters, layouts
    )
    return Loaded(runner=runner, tokenizer=tokenizer, chat_template=chat_template, info=info)


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
    layouts: Layouts = None,
) -> Weights:  # fmt: skip
    """Read every weight of the model onto the device, quantised to layouts or as it is.

    Raises:
      ModelLoadError: the checkpoint's tensors do not fit the model.
      ConfigError: the model has weights that the layout does not fit.
      DeviceError: the weights do not fit into the device's memory.
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
    names, specs, structs = [], {}, {}
    bytes_of = {
        ".".join(map(str, path)): module.layout.bytes_of
        for path, module in nnx.iter_modules(abstract)
        if isinstance(module, Weighted) and module.layout is not None and module.layout.bytes_of is not None
    }
    for (path, leaf), parameter in zip(
        paths, jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Param)), strict=True
    ):
        name = target_name(path)
        names.append(name)
        specs[name] = parameter.get_metadata("spec", P())
        structs[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    try:
        if checkpoint.format == "dummy":
            weights = random_weights(structs, shardings, config.progress, bytes_of=bytes_of)
        elif isinstance(checkpoint, ScriptedCheckpoint):
            weights = {name: jax.device_put(checkpoint.weights[name], shardings[name]) for name in names}
        elif isinstance(checkpoint, PreparedCheckpoint) and (checkpoint.layouts or layouts is None):
            weights = checkpoint.place(structs, shardings, config.progress)
        else:
            rules = checkpoint.rules() if isinstance(checkpoint, PreparedCheckpoint) else rules_of(family)
            weights = load_weights(
                checkpoint, rules, structs, lambda name, array: jax.device_put(array, shardings[name]),
                config.progress, bytes_of=bytes_of,
            )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        size = sum(math.prod(s.shape) * jnp.dtype(s.dtype).itemsize for s in structs.values()) / 2**30
        raise DeviceError(
            f"the weights take {size:.1f} GiB on the device and did not fit{free_memory(mesh.devices.flat[0])}; "
            f"choose a smaller model or dtype ({str(error).splitlines()[0]})"
        ) from error
    parameters = sum(
        math.prod(structs[name].shape) * (1 if bytes_of.get(name, "fp8") == "fp8" else 2)
        for name in names
        if not name.endswith((SCALES, OFFSETS))
    )
    return Weights(graph, treedef, tuple(weights[name] for name in names), parameters)


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
