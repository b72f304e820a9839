"""OLMo 2 (arXiv 2501.00656): norms after attention and feed-forward, and over all queries and all keys of a token.

Reference: transformers' Olmo2ForCausalLM.
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

__all__ = ["Olmo2", "Olmo2Config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Olmo2Config(DecoderConfig):
    attention_bias: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Olmo2Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, {"rms_norm_eps": 1e-5})
        read.require("sliding_window", None)  # OLMo 3, whose GGUF files have the same architecture
        sizes = read_sizes(read)
        return Olmo2Config(
            **sizes,
            ropes=(Rope.from_config(read.config, sizes["head_dim"]),) * sizes["num_layers"],
            windows=(None,) * sizes["num_layers"],
            attention_bias=read.flag("attention_bias"),
        )


class HeadsNorm(RmsNorm):
    """Over all heads of a token together."""

    def __call__(self, x: Float[Array, "T N H"]) -> Float[Array, "T N H"]:
        return super().__call__(x.reshape(x.shape[0], -1)).reshape(x.shape)


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with a norm after it and a residual around both."""

    def __init__(self, config: Olmo2Config, dtype: jnp.dtype) -> None:
        c = config
        self.attention = Attention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
            dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias,
            q_norm=HeadsNorm(c.num_attention_heads * c.head_dim, eps=c.norm_eps),
            k_norm=HeadsNorm(c.num_key_value_heads * c.head_dim, eps=c.norm_eps),
        )  # fmt: skip
        self.attention_post_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)
        self.mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)
        self.mlp_post_norm = RmsNorm(c.hidden_size, eps=c.norm_eps)

    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        y, cache = self.attention(x, cache, batch, rope)
        x = x + self.attention_post_norm(y)
        return x + self.mlp_post_norm(self.mlp(x)), cache


class Olmo2(Decoder):
    def __init__(self, config: Olmo2Config, dtype: jnp.dtype) -> None:
        c = config
        blocks = [Block(c, dtype) for _ in range(c.num_layers)]
        super().__init__(c, blocks, RmsNorm(c.hidden_size, eps=c.norm_eps), dtype)
