"""The Llama family: Llama 2 to 3.3, SmolLM2, Yi, and Mistral with its sliding window.

Reference: transformers' LlamaForCausalLM and MistralForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.layers import Attention, BlockBatch, Embedding, GatedMlp, RmsNorm, Rope
from cvllm_jax.models.layers.linear import project
from pallas_kernels.kv_write import KvPages

__all__ = ["Llama", "LlamaConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """Dimensions and options; see :class:`cvllm_jax.models.registry.ModelConfig` for what every family has."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    context_length: int
    rms_norm_eps: float
    rope: Rope
    tie_embeddings: bool
    attention_bias: bool = False
    mlp_bias: bool = False
    window: int | None = None

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> LlamaConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config)
        read.require("hidden_act", "silu")
        read.require("pretraining_tp", 1)
        heads, hidden = read.positive("num_attention_heads"), read.positive("hidden_size")
        kv_heads = read.positive("num_key_value_heads", heads)
        head_dim = read.positive("head_dim", hidden // heads)
        if heads % kv_heads:
            read.refuse(f"num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})")
        if head_dim % 2:
            read.refuse(f"head_dim must be even, not {head_dim}")
        return LlamaConfig(
            vocab_size=read.positive("vocab_size"),
            hidden_size=hidden,
            intermediate_size=read.positive("intermediate_size"),
            num_layers=read.positive("num_hidden_layers", most=1024),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            context_length=read.positive("max_position_embeddings", 2048),
            rms_norm_eps=read.number("rms_norm_eps", 1e-6),
            rope=Rope.from_config(config, head_dim),
            tie_embeddings=read.flag("tie_word_embeddings"),
            attention_bias=read.flag("attention_bias"),
            mlp_bias=read.flag("mlp_bias"),
            window=read.positive("sliding_window") if config.get("sliding_window") else None,
        )


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with a norm before and a residual around it."""

    def __init__(self, config: LlamaConfig, dtype: jnp.dtype) -> None:
        c = config
        self.attention_norm = RmsNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.attention = Attention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
            dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias, window=c.window,
        )  # fmt: skip
        self.mlp_norm = RmsNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, bias=c.mlp_bias)

    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: tuple[jax.Array, jax.Array]
    ) -> tuple[Float[Array, "T D"], KvPages]:
        y, cache = self.attention(self.attention_norm(x), cache, batch, rope)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), cache


class Llama(nnx.Module):
    def __init__(self, config: LlamaConfig, dtype: jnp.dtype) -> None:
        self.rope = config.rope
        self.embed = Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nnx.List([Block(config, dtype) for _ in range(config.num_layers)])
        self.norm = RmsNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = (
            None
            if config.tie_embeddings
            else nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype), spec=P("tp", None))
        )

    def __call__(
        self, tokens: Int[Array, "T"], cache: tuple[KvPages, ...], batch: BlockBatch
    ) -> tuple[Float[Array, "T D"], tuple[KvPages, ...]]:
        """Hidden states of the step's tokens after the last norm, and the cache with their keys and values."""
        x = self.embed(tokens)
        rope = self.rope.tables(batch.positions)
        written = []
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x, layer_cache = layer(x, layer_cache, batch, rope)
            written.append(layer_cache)
        return self.norm(x), tuple(written)

    @jax.named_scope("head")
    def logits(self, hidden: Float[Array, "R D"]) -> Float[Array, "R V"]:
        """Unnormalised log probabilities in f32."""
        return self.embed.attend(hidden) if self.head is None else project(hidden, self.head[...], jnp.float32)
