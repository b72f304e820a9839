"""gpt-oss (arXiv 2508.10925): experts with a clamped activation, attention sinks, and a window on every other layer.

Reference: transformers' GptOssForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import FULL, SLIDING, ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_experts, read_sizes
from cvllm_jax.models.layers import Attention, RmsNorm, Rope
from cvllm_jax.models.layers.moe import ClampedSwiglu, Experts, MoeBlock, MoeMlp, Router

__all__ = ["GptOss", "GptOssConfig"]

_DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "sliding_window": 128,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GptOssConfig(DecoderConfig):
    attention_bias: bool
    swiglu: ClampedSwiglu

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> GptOssConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        read.require("hidden_act", "silu")  # of which the experts have a form of their own
        sizes = read_sizes(read)
        kinds = read.layer_types([FULL if layer % 2 else SLIDING for layer in range(sizes["num_layers"])])
        scaled = config.get("rope_parameters") or config.get("rope_scaling")
        rope = Rope.from_config(
            config if scaled else {**config, "rope_scaling": _YARN}, sizes["head_dim"], theta=150_000.0
        )
        return GptOssConfig(
            **sizes,
            ropes=(rope,) * sizes["num_layers"],
            windows=tuple(read.positive("sliding_window") if kind == SLIDING else None for kind in kinds),
            experts=read_experts(read, "num_local_experts", hidden="intermediate_size"),
            attention_bias=read.flag("attention_bias", True),
            swiglu=ClampedSwiglu(read.positive_number("swiglu_alpha"), read.positive_number("swiglu_limit")),
        )


class GptOss(Decoder):
    def __init__(self, config: GptOssConfig, dtype: jnp.dtype) -> None:
        c = config
        assert c.experts is not None
        experts = c.experts

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def block(window: int | None) -> MoeBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias, window=window, sinks=True,
            )  # fmt: skip
            mlp = MoeMlp(
                Router(c.hidden_size, experts.experts, experts.chosen, bias=True),
                Experts(experts, c.hidden_size, dtype=dtype, activation=c.swiglu, bias=True),
            )
            return MoeBlock(norm(), attention, norm(), mlp)

        super().__init__(c, [block(window) for window in c.windows], norm(), dtype)
