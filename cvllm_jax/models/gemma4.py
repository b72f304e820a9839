"""Gemma 4, text: larger heads in layers that see all, layers that attend to the keys of others, inputs for each layer.

Reference: transformers' Gemma4ForCausalLM. The cache has the larger heads in all layers; see :class:`Gemma4Config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cvllm_jax.models.config_reading import FULL, SLIDING, ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_experts, read_sizes
from cvllm_jax.models.layers import BlockBatch, RmsNorm, Rope
from cvllm_jax.models.layers.gemma4 import Gemma4Attention, Gemma4Block, Mixture, OwnInput, OwnInputs
from pallas_kernels.kv_write import KvPages

__all__ = ["Gemma4", "Gemma4Config"]

_DEFAULTS = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
    "sliding_window": 512,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "num_kv_shared_layers": 0,
}
_PATTERN = 6  # layers of which the last sees all
_ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma4Config(DecoderConfig):
    """``head_dim`` and ``num_key_value_heads`` are those of the cache, the largest of any layer."""

    head_dims: tuple[int, ...]
    """Of each layer."""
    kv_heads: tuple[int, ...]
    """Heads of keys and values of each layer."""
    sources: tuple[int, ...]
    """The layer whose keys and values each layer attends to: itself, or for the last layers an earlier one."""
    values_are_keys: tuple[bool, ...]
    """Layers without a matrix for values, which are the keys before their norm."""
    mlp_sizes: tuple[int, ...]
    attention_bias: bool
    own_input_size: int
    """Numbers of the input that each layer has for itself; 0 for none."""
    own_input_vocab: int
    logit_soft_cap: float | None

    @property
    def rotary_dim(self) -> int:
        return self.head_dim

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Gemma4Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        read.require("per_layer_config", None)
        if read.config.get("use_bidirectional_attention") not in (None, "vision"):  # text is causal under both
            read.require("use_bidirectional_attention", None)
        sizes = read_sizes(read, activation="hidden_activation")
        layers, heads = sizes["num_layers"], sizes["num_attention_heads"]
        kinds = _kinds(read, layers)
        dims = {SLIDING: sizes["head_dim"], FULL: read.positive("global_head_dim")}
        kv_heads, merged = dict.fromkeys(dims, sizes["num_key_value_heads"]), read.flag("attention_k_eq_v")
        if merged:
            kv_heads[FULL] = read.positive("num_global_key_value_heads", kv_heads[FULL])
        sizes["head_dim"], sizes["num_key_value_heads"] = max(dims.values()), max(kv_heads.values())
        if dims[FULL] % 2 or heads % kv_heads[FULL] or sizes["num_key_value_heads"] % min(kv_heads.values()):
            read.refuse(
                f"global_head_dim ({dims[FULL]}) must be even, num_global_key_value_heads ({kv_heads[FULL]}) divide "
                f"num_attention_heads ({heads}), and one of it and num_key_value_heads divide the other"
            )
        sources = _sources(read, kinds)
        wide = 2 if read.flag("use_double_wide_mlp") else 1
        own = read.whole("hidden_size_per_layer_input", 256)
        if own and read.positive("vocab_size_per_layer_input") < sizes["vocab_size"]:
            read.refuse("vocab_size_per_layer_input is less than vocab_size")
        ropes = _ropes(read, dims)
        moe = read.flag("enable_moe_block")
        return Gemma4Config(
            **sizes,
            ropes=tuple(ropes[kind] for kind in kinds),
            windows=tuple(read.positive("sliding_window") if kind == SLIDING else None for kind in kinds),
            experts=read_experts(read, "num_experts", chosen="top_k_experts") if moe else None,
            head_dims=tuple(dims[kind] for kind in kinds),
            kv_heads=tuple(kv_heads[kind] for kind in kinds),
            sources=sources,
            values_are_keys=tuple(merged and kind == FULL for kind in kinds),
            mlp_sizes=tuple(
                sizes["intermediate_size"] * (1 if source == layer else wide) for layer, source in enumerate(sources)
            ),
            attention_bias=read.flag("attention_bias"),
            own_input_size=own,
            own_input_vocab=read.positive("vocab_size_per_layer_input") if own else 0,
            logit_soft_cap=read.optional_positive_number("final_logit_softcapping"),
        )


def _kinds(read: ConfigReader, layers: int) -> tuple[str, ...]:
    """The kind of each layer; the last one sees all whatever ``layer_types`` says."""
    kinds = read.layer_types([SLIDING if (layer + 1) % _PATTERN else FULL for layer in range(layers)])
    return (*kinds[:-1], FULL)


def _sources(read: ConfigReader, kinds: tuple[str, ...]) -> tuple[int, ...]:
    """The last ``num_kv_shared_layers`` attend to the keys of the last layer of their kind before them."""
    first = len(kinds) - read.whole("num_kv_shared_layers", 0)
    last = {kind: layer for layer, kind in enumerate(kinds[: max(first, 0)])}
    if missing := set(kinds) - set(last):
        read.refuse(f"num_kv_shared_layers leaves no layer of the kind {min(missing)} that has keys of its own")
    return tuple(layer if layer < first else last[kind] for layer, kind in enumerate(kinds))


def _ropes(read: ConfigReader, head_dims: Mapping[str, int]) -> dict[str, Rope]:
    parameters = read.config.get("rope_parameters") or _ROPES
    if not isinstance(parameters, Mapping) or parameters.keys() != _ROPES.keys():
        read.refuse(f"rope_parameters must be an object with {FULL} and {SLIDING}, not {parameters!r:.80}")
    return {
        kind: Rope.from_config(
            {"rope_parameters": parameters[kind]}, head_dim, supported=("default", "linear", "proportional")
        )
        for kind, head_dim in head_dims.items()
    }


class Gemma4(Decoder):
    def __init__(self, config: Gemma4Config, dtype: jnp.dtype) -> None:
        c = config
        self.sources = c.sources

        def block(layer: int) -> Gemma4Block:
            attention = Gemma4Attention(
                c.hidden_size, c.num_attention_heads, c.kv_heads[layer], c.head_dims[layer],
                dtype=dtype, eps=c.norm_eps, bias=c.attention_bias, window=c.windows[layer],
                has_keys=c.sources[layer] == layer, values_are_keys=c.values_are_keys[layer],
                cache_heads=c.num_key_value_heads, cache_dim=c.head_dim,
            )  # fmt: skip
            mixture = own_input = None
            if c.experts is not None:
                mixture = Mixture(c.experts, c.hidden_size, c.activation, eps=c.norm_eps, dtype=dtype)
            if c.own_input_size:
                own_input = OwnInput(c.hidden_size, c.own_input_size, c.activation, eps=c.norm_eps, dtype=dtype)
            return Gemma4Block(
                attention, c.hidden_size, c.mlp_sizes[layer], c.activation, eps=c.norm_eps, dtype=dtype,
                mixture=mixture, own_input=own_input,
            )  # fmt: skip

        super().__init__(
            c, [block(layer) for layer in range(c.num_layers)], RmsNorm(c.hidden_size, eps=c.norm_eps), dtype,
            embedding_scale=c.hidden_size**0.5, logit_soft_cap=c.logit_soft_cap,
        )  # fmt: skip
        size = c.own_input_size
        self.own_inputs = (
            OwnInputs(c.own_input_vocab, c.num_layers, size, c.hidden_size, eps=c.norm_eps, dtype=dtype)
            if size
            else None
        )

    def __call__(
        self, tokens: Int[Array, "T"], cache: tuple[KvPages, ...], batches: tuple[BlockBatch, ...]
    ) -> tuple[Float[Array, "T D"], tuple[KvPages, ...]]:
        """As :meth:`Decoder.__call__`; layers without keys of their own leave their part of the cache as it is."""
        x = self.embed(tokens)
        x *= jnp.asarray(self.embedding_scale, x.dtype)
        own = None if self.own_inputs is None else self.own_inputs(tokens, x)
        tables = {rope: rope.tables(batches[0].positions) for rope in dict.fromkeys(self.ropes)}
        pages = list(cache)
        for layer, (block, group, rope) in enumerate(zip(self.layers, self.groups, self.ropes, strict=True)):
            source = self.sources[layer]
            own_input = None if own is None else own[:, layer]
            x, pages[source] = block(x, pages[source], batches[group], tables[rope], own_input)
        return self.norm(x), tuple(pages)
