"""Gemma 3, text (arXiv 2503.19786): five layers with a window for each that sees all, with a rotation of their own.

Reference: transformers' Gemma3ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import FULL, SLIDING, ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, GatedMlp, RmsNorm, Rope, SandwichBlock

__all__ = ["Gemma3", "Gemma3Config", "gemma3_blocks"]

_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 256,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3Config(DecoderConfig):
    attention_bias: bool
    attention_scale: float
    logit_soft_cap: float | None

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Gemma3Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        read.require("use_bidirectional_attention", False)
        read.require("attn_logit_softcapping", None)  # transformers reads it and does not use it
        sizes = read_sizes(read, activation="hidden_activation")
        pattern = read.positive("sliding_window_pattern")
        kinds = read.layer_types([SLIDING if (layer + 1) % pattern else FULL for layer in range(sizes["num_layers"])])
        ropes = _ropes(read, sizes["head_dim"])
        return Gemma3Config(
            **sizes,
            ropes=tuple(ropes[kind] for kind in kinds),
            windows=tuple(read.positive("sliding_window") if kind == SLIDING else None for kind in kinds),
            attention_bias=read.flag("attention_bias"),
            attention_scale=read.positive_number("query_pre_attn_scalar") ** -0.5,
            logit_soft_cap=read.optional_positive_number("final_logit_softcapping"),
        )


def _ropes(read: ConfigReader, head_dim: int) -> dict[str, Rope]:
    """The rotations of both kinds of layers; what scales them is for those that see all."""
    config = read.config
    parameters = config.get("rope_parameters")
    if not parameters:
        local = {"rope_theta": config.get("rope_local_base_freq")}
        return {
            FULL: Rope.from_config(config, head_dim, theta=1_000_000.0),
            SLIDING: Rope.from_config(local, head_dim),
        }
    if not isinstance(parameters, Mapping) or not parameters.keys() <= {FULL, SLIDING}:
        read.refuse(f"rope_parameters must be an object with {FULL} and {SLIDING}, not {parameters!r:.80}")
    return {
        kind: Rope.from_config({**config, "rope_parameters": parameters.get(kind)}, head_dim, theta=theta)
        for kind, theta in ((FULL, 1_000_000.0), (SLIDING, 10_000.0))
    }


def gemma3_blocks(
    config: Gemma3Config, dtype: jnp.dtype, attention_class: type[Attention] = Attention
) -> list[SandwichBlock]:
    """The layers, with attention over the paged cache or inside whole texts."""
    c = config

    def norm(width: int = c.hidden_size) -> RmsNorm:
        return RmsNorm(width, eps=c.norm_eps)

    def block(window: int | None) -> SandwichBlock:
        attention = attention_class(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
            dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias, window=window,
            scale=c.attention_scale, q_norm=norm(c.head_dim), k_norm=norm(c.head_dim),
        )  # fmt: skip
        mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)
        return SandwichBlock(norm(), attention, norm(), norm(), mlp, norm())

    return [block(window) for window in c.windows]


class Gemma3(Decoder):
    def __init__(self, config: Gemma3Config, dtype: jnp.dtype) -> None:
        c = config
        super().__init__(
            c, gemma3_blocks(c, dtype), RmsNorm(c.hidden_size, eps=c.norm_eps), dtype,
            embedding_scale=c.hidden_size**0.5, logit_soft_cap=c.logit_soft_cap,
        )  # fmt: skip
