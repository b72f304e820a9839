"""Gemma 1, CodeGemma among it: scaled token vectors and gains that checkpoints store less one.

Reference: transformers' GemmaForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, BlockBatch, GatedMlp, RmsNorm, Rope, RopeTables
from pallas_kernels.kv_write import KvPages

__all__ = ["Gemma", "GemmaConfig"]

_DEFAULTS = {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaConfig(DecoderConfig):
    attention_bias: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> GemmaConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        if config.get("hidden_act") == "gelu":  # the first releases say this and mean its approximation
            config = {**config, "hidden_act": "gelu_pytorch_tanh"}
        read = ConfigReader(config, _DEFAULTS)
        read.require("use_bidirectional_attention", False)
        sizes = read_sizes(read)
        return GemmaConfig(
            **sizes,
            ropes=(Rope.from_config(read.config, sizes["head_dim"]),) * sizes["num_layers"],
            windows=(None,) * sizes["num_layers"],
            attention_bias=read.flag("attention_bias"),
        )


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with a norm before and a residual around it."""

    def __init__(self, config: GemmaConfig, dtype: jnp.dtype) -> None:
        c = config
        self.attention_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        self.attention = Attention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
            dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias,
        )  # fmt: skip
        self.mlp_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        self.mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)

    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        y, cache = self.attention(self.attention_norm(x), cache, batch, rope)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), cache


class Gemma(Decoder):
    def __init__(self, config: GemmaConfig, dtype: jnp.dtype) -> None:
        c = config
        blocks = [Block(c, dtype) for _ in range(c.num_layers)]
        norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        super().__init__(c, blocks, norm, dtype, embedding_scale=c.hidden_size**0.5)
