"""SmolLM3: every fourth layer without positions.

Reference: transformers' SmolLM3ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import FULL, SLIDING, ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, GatedMlp, PreNormBlock, RmsNorm, Rope

__all__ = ["SmolLM3", "SmolLM3Config"]

_DEFAULTS = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "no_rope_layer_interval": 4,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SmolLM3Config(DecoderConfig):
    attention_bias: bool
    mlp_bias: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> SmolLM3Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        sizes = read_sizes(read)
        head_dim, layers = sizes["head_dim"], sizes["num_layers"]
        turned = _rotated(read, layers)
        rope, still = Rope.from_config(read.config, head_dim, theta=2_000_000.0), Rope.none(head_dim)
        return SmolLM3Config(
            **sizes,
            ropes=tuple(rope if rotated else still for rotated in turned),
            windows=_windows(read, turned),
            attention_bias=read.flag("attention_bias"),
            mlp_bias=read.flag("mlp_bias"),
        )


def _rotated(read: ConfigReader, layers: int) -> list[bool]:
    """Which layers have positions: ``no_rope_layers`` has a 1 for each that does."""
    flags = read.config.get("no_rope_layers")
    if flags is None:
        interval = read.positive("no_rope_layer_interval")
        return [(layer + 1) % interval != 0 for layer in range(layers)]
    if not isinstance(flags, list) or len(flags) < layers or any(flag not in (0, 1) for flag in flags):
        read.refuse(f"no_rope_layers must be a list of 0 and 1 for {layers} layers, not {flags!r:.80}")
    return [bool(flag) for flag in flags[:layers]]


def _windows(read: ConfigReader, rotated: list[bool]) -> tuple[int | None, ...]:
    """Where windows are in use, they are on the layers without positions unless ``layer_types`` says otherwise."""
    if not read.flag("use_sliding_window") or read.config.get("sliding_window") is None:
        return (None,) * len(rotated)
    kinds = read.layer_types([FULL if turned else SLIDING for turned in rotated])
    return tuple(read.positive("sliding_window") if kind == SLIDING else None for kind in kinds)


class SmolLM3(Decoder):
    def __init__(self, config: SmolLM3Config, dtype: jnp.dtype) -> None:
        c = config

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def block(window: int | None) -> PreNormBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias, window=window,
            )  # fmt: skip
            mlp = GatedMlp(
                c.hidden_size, c.intermediate_size, dtype=dtype, bias=c.mlp_bias, activation=c.activation
            )
            return PreNormBlock(norm(), attention, norm(), mlp)

        super().__init__(c, [block(window) for window in c.windows], norm(), dtype)
