"""Gemma 2 (arXiv 2408.00118): windows on every other layer, soft caps, and a norm before and after each part.

Reference: transformers' Gemma2ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cvllm_jax.models.config_reading import FULL, SLIDING, ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, BlockBatch, GatedMlp, RmsNorm, Rope, RopeTables
from pallas_kernels.kv_write import KvPages

__all__ = ["Gemma2", "Gemma2Config"]

_DEFAULTS = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma2Config(DecoderConfig):
    attention_bias: bool
    attention_scale: float
    attention_soft_cap: float | None
    logit_soft_cap: float | None

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Gemma2Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        read.require("use_bidirectional_attention", False)
        sizes = read_sizes(read, activation="hidden_activation")
        kinds = read.layer_types([FULL if layer % 2 else SLIDING for layer in range(sizes["num_layers"])])
        return Gemma2Config(
            **sizes,
            ropes=(Rope.from_config(read.config, sizes["head_dim"]),) * sizes["num_layers"],
            windows=tuple(read.positive("sliding_window") if kind == SLIDING else None for kind in kinds),
            attention_bias=read.flag("attention_bias"),
            attention_scale=read.positive_number("query_pre_attn_scalar") ** -0.5,
            attention_soft_cap=read.optional_positive_number("attn_logit_softcapping"),
            logit_soft_cap=read.optional_positive_number("final_logit_softcapping"),
        )


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with a norm before and after it and a residual around all three."""

    def __init__(self, config: Gemma2Config, window: int | None, dtype: jnp.dtype) -> None:
        c = config
        self.attention_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        self.attention = Attention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
            dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias, window=window,
            scale=c.attention_scale, soft_cap=c.attention_soft_cap,
        )  # fmt: skip
        self.attention_post_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        self.mlp_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        self.mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)
        self.mlp_post_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)

    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        y, cache = self.attention(self.attention_norm(x), cache, batch, rope)
        x = x + self.attention_post_norm(y)
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x))), cache


class Gemma2(Decoder):
    def __init__(self, config: Gemma2Config, dtype: jnp.dtype) -> None:
        c = config
        blocks = [Block(c, window, dtype) for window in c.windows]
        norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        super().__init__(
            c, blocks, norm, dtype, embedding_scale=c.hidden_size**0.5, logit_soft_cap=c.logit_soft_cap
        )
