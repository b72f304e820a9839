"""What a GGUF file says about its model, in the keys of a Hugging Face ``config.json``.

An architecture is what a table of ``mappings`` declares as ``GGUF``. One that no table declares keeps its GGUF name,
so that the model registry can refuse it by that name.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from cvllm_jax.checkpoints import mappings
from cvllm_jax.checkpoints.gguf import GgufFile
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture
from cvllm_jax.errors import ModelLoadError

__all__ = ["ROPE_TENSORS", "config_from_gguf", "eos_from_gguf", "gguf_architectures", "sampling_from_gguf"]

#: Tensors that are part of the configuration.
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>")
_CONTROL, _USER_DEFINED = 3, 4
_SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def config_from_gguf(file: GgufFile) -> dict[str, Any]:
    """The model's configuration.

    Raises:
        ModelLoadError: a key is missing or has a value that no model can have, or the file is no whole model.
    """
    metadata, tensors = file.metadata, file.tensors
    parts, part = metadata.get("split.count", 0), metadata.get("split.no", 0)
    if isinstance(parts, int) and isinstance(part, int) and parts > 1:
        raise ModelLoadError(
            f"{file.path} is part {part + 1} of {parts} of a split model, which is not supported: "
            f"merge them with `llama-gguf-split --merge`"
        )
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelLoadError(f"{file.path} does not say its architecture (general.architecture)")
    if not tensors:
        raise ModelLoadError(f"{file.path} holds a vocabulary only, no weights")
    read = _Reader(file, name)
    experts = read.optional_size("expert_count")
    architecture = gguf_architectures().get((name, experts > 0))
    if architecture is None:
        if (name, not experts) in gguf_architectures():
            name += f" {'with' if experts else 'without'} experts"
        return {"architectures": [name], "model_type": name}

    if read.get("attention.causal") not in (None, architecture.causal):
        kind = "without" if architecture.causal else "with"
        return {"architectures": [f"{name} {kind} causal attention"], "model_type": name}

    config: dict[str, Any] = {"architectures": [architecture.architecture], **architecture.constants}
    config |= {key: read.size(suffix) for key, suffix in _SIZES.items()}
    if config["num_hidden_layers"] > len(tensors):
        raise ModelLoadError(
            f"{file.path} announces {config['num_hidden_layers']} layers but has only {len(tensors)} tensors"
        )
    config["num_hidden_layers"] -= read.optional_size("nextn_predict_layers")
    heads = config["num_attention_heads"]
    head_dim = read.optional_size("attention.key_length") or config["hidden_size"] // heads
    value_dim = read.optional_size("attention.value_length") or head_dim
    if head_dim < 1 or (value_dim != head_dim and not architecture.values_in_keys):
        raise ModelLoadError(f"{file.path}: keys and values of different or no size are not supported")
    embedding = tensors.get("token_embd.weight")
    config |= {
        "num_key_value_heads": read.optional_size("attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0] if embedding else read.size("vocab_size"),
        "rope_theta": read.number("rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
    }
    rms = "rms_" if architecture.norm_eps == "rms_norm_eps" else ""
    config[architecture.norm_eps] = read.number(f"attention.layer_norm_{rms}epsilon")
    config |= {key: value for key, suffix in architecture.keys.items() if (value := read.get(suffix)) is not None}
    config |= {key: name in tensors for key, name in architecture.flags.items()}
    config |= {key: tensors[name].shape[0] for key, name in architecture.rows.items() if name in tensors}
    if architecture.experts is not None:
        config |= {architecture.experts: experts, "num_experts_per_tok": read.size("expert_used_count")}
        hidden = read.optional_size("expert_feed_forward_length")
        config["moe_intermediate_size"] = hidden or config["intermediate_size"]
    rotated = read.optional_size("rope.dimension_count") or head_dim
    if rotated != head_dim:
        config["partial_rotary_factor"] = rotated / head_dim
    if window := read.optional_size("attention.sliding_window"):
        config["sliding_window"] = window
    if scaling := _rope_scaling(read):
        config["rope_scaling"] = scaling
    for key in ("bos", "eos"):
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            config[f"{key}_token_id"] = token
    return config if architecture.derive is None else {**config, **architecture.derive(config)}


@cache
def gguf_architectures() -> Mapping[tuple[str, bool], GgufArchitecture]:
    """What the tables declare, by GGUF name and whether there are experts."""
    tables = (importlib.import_module(f"{mappings.__name__}.{m.name}") for m in pkgutil.iter_modules(mappings.__path__))
    declared: list[GgufArchitecture] = [table.GGUF for table in tables if hasattr(table, "GGUF")]
    return {(architecture.name, architecture.experts is not None): architecture for architecture in declared}


def eos_from_gguf(file: GgufFile, vocab_size: int | None) -> tuple[int, ...]:
    """Ids that end an answer: those the metadata names, and the end of a turn in its chat template."""
    metadata = file.metadata
    keys = [f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom")]
    found = [metadata[key] for key in keys if key in metadata]
    template, tokens = metadata.get("tokenizer.chat_template"), metadata.get("tokenizer.ggml.tokens")
    kinds = metadata.get("tokenizer.ggml.token_type")
    if isinstance(template, str) and isinstance(tokens, list) and isinstance(kinds, list):
        for text in _END_OF_TURN:
            if text in template and text in tokens:
                token = tokens.index(text)
                if token < len(kinds) and kinds[token] in (_CONTROL, _USER_DEFINED):
                    found.append(token)
    for token in found:
        if type(token) is not int or not 0 <= token < (vocab_size or 2**31):
            raise ModelLoadError(f"{file.path} names {token!r} as an end token, which its vocabulary lacks")
    return tuple(dict.fromkeys(found))


def sampling_from_gguf(file: GgufFile) -> dict[str, Any]:
    """The sampling settings that the file recommends, by their names in ``generation_config.json``."""
    return {key: file.metadata[source] for key, source in _SAMPLING.items() if source in file.metadata}


class _Reader:
    """Typed access to the keys of one architecture."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file, self._prefix = file, architecture

    def get(self, suffix: str) -> Any:
        return self.file.metadata.get(f"{self._prefix}.{suffix}")

    def optional_size(self, suffix: str) -> int:
        """A whole number from 0 up; 0 where the key is absent."""
        value = self.get(suffix)
        if value is None:
            return 0
        if type(value) is not int or not 0 <= value < 2**31:
            raise ModelLoadError(f"{self.file.path}: {self._prefix}.{suffix} is {str(value)[:80]}, no size")
        return value

    def size(self, suffix: str) -> int:
        value = self.optional_size(suffix)
        if value == 0:
            raise ModelLoadError(f"{self.file.path} lacks the size {self._prefix}.{suffix}")
        return value

    def number(self, suffix: str, default: float | None = None) -> float:
        value = self.get(suffix)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ModelLoadError(f"{self.file.path}: {self._prefix}.{suffix} is {str(value)[:80]}, no number")
        return float(value)


def _rope_scaling(read: _Reader) -> dict[str, Any] | None:
    """``rope_scaling`` from the metadata and from the tensors that llama.cpp stores divisors of frequencies in."""
    scaling: dict[str, Any]
    kind = read.get("rope.scaling.type")
    factor = read.number("rope.scaling.factor", 0.0) or read.number("rope.scale_linear", 0.0)
    if kind is None and factor not in (0.0, 1.0):
        kind = "linear"  # files from before rope.scaling.type existed
    if "rope_factors_long.weight" in read.file.tensors:
        if kind not in (None, "none", "longrope"):
            raise ModelLoadError(f"{read.file.path}: long rope factors with {kind} scaling are not supported")
        scaling = {f"{length}_factor": _factors(read, f"rope_factors_{length}.weight") for length in ("long", "short")}
        scaling |= {"rope_type": "longrope", "attention_factor": read.number("rope.scaling.attn_factor", 1.0)}
        return scaling | {"original_max_position_embeddings": read.size("rope.scaling.original_context_length")}
    if "rope_freqs.weight" in read.file.tensors:  # Llama 3's rule, computed when the file was made
        if kind not in (None, "none"):
            raise ModelLoadError(f"{read.file.path}: rope factors with {kind} scaling are not supported")
        return {"rope_type": "factors", "factors": _factors(read, "rope_freqs.weight")}
    if kind in (None, "none"):
        return None
    scaling = {"rope_type": kind}
    if factor:
        scaling["factor"] = factor
    if original := read.optional_size("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = original
    if kind == "yarn":
        for key in ("beta_fast", "beta_slow"):
            if read.get(f"rope.scaling.yarn_{key}") is not None:
                scaling[key] = read.number(f"rope.scaling.yarn_{key}")
        if read.get("rope.scaling.yarn_attn_factor") is not None:
            scaling["attention_factor"] = read.number("rope.scaling.yarn_attn_factor")
        elif factor and read.get("rope.scaling.attn_factor") is not None:
            # GGUF stores what multiplies yarn's own attention factor, config.json the product
            own = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
            scaling["attention_factor"] = read.number("rope.scaling.attn_factor") * own
    return scaling


def _factors(read: _Reader, name: str) -> list[float]:
    tensor = read.file.tensors.get(name)
    count = math.prod(tensor.shape) if tensor else 0
    factors = read.file.read(name).reshape(-1) if 0 < count <= 1024 else np.zeros(1)
    if not np.all(np.isfinite(factors) & (factors > 0)):
        raise ModelLoadError(f"{read.file.path}: {name} holds no usable factors")
    return [float(factor) for factor in factors]
