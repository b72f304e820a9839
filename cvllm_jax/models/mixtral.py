"""Mixtral (arXiv 2401.04088): Mistral with eight feed-forward blocks, of which each token takes two.

Reference: transformers' MixtralForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_experts, read_sizes
from cvllm_jax.models.layers import Attention, RmsNorm, Rope
from cvllm_jax.models.layers.moe import Experts, Glu, MoeBlock, MoeMlp, Router

__all__ = ["Mixtral", "MixtralConfig"]

_DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtralConfig(DecoderConfig):
    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> MixtralConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        sizes = read_sizes(read)
        window = read.positive("sliding_window") if config.get("sliding_window") else None
        return MixtralConfig(
            **sizes,
            ropes=(Rope.from_config(config, sizes["head_dim"], theta=1_000_000.0),) * sizes["num_layers"],
            windows=(window,) * sizes["num_layers"],
            experts=read_experts(read, "num_local_experts", hidden="intermediate_size"),
        )


class Mixtral(Decoder):
    def __init__(self, config: MixtralConfig, dtype: jnp.dtype) -> None:
        c = config
        assert c.experts is not None
        experts = c.experts

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def block(window: int | None) -> MoeBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, dtype=dtype, window=window
            )
            mlp = MoeMlp(
                Router(c.hidden_size, experts.experts, experts.chosen),
                Experts(experts, c.hidden_size, dtype=dtype, activation=Glu(c.activation)),
            )
            return MoeBlock(norm(), attention, norm(), mlp)

        super().__init__(c, [block(window) for window in c.windows], norm(), dtype)
