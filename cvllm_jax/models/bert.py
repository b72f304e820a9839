"""BERT as an encoder of text: all-MiniLM, BGE, E5, GTE and others that kept its architecture.

Reference: transformers' BertModel (Devlin et al., arXiv 1810.04805), without its pooler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from cvllm_jax.models.cache_groups import CacheGroup
from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear

__all__ = ["Bert", "BertConfig"]

@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """Dimensions and options; see :class:`cvllm_jax.models.registry.ModelConfig` for what every family has."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    head_dim: int
    context_length: int
    token_types: int
    layer_norm_eps: float
    activation: str
    experts: None = None
    shares_values: bool = False
    index_dim: int = 0
    recurrent: None = None
    cache_groups: tuple[CacheGroup, ...] = ()

    @property
    def num_key_value_heads(self) -> int:
        return self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        return 0

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> BertConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config)
        read.require("position_embedding_type", "absolute")
        read.require("is_decoder", False)
        read.require("add_cross_attention", False)
        heads, hidden = read.positive("num_attention_heads"), read.positive("hidden_size")
        if hidden % heads:
            read.refuse(f"hidden_size ({hidden}) is no multiple of num_attention_heads ({heads})")
        return BertConfig(
            vocab_size=read.positive("vocab_size"),
            hidden_size=hidden,
            intermediate_size=read.positive("intermediate_size"),
            num_layers=read.positive("num_hidden_layers", most=1024),
            num_attention_heads=heads,
            head_dim=hidden // heads,
            context_length=read.positive("max_position_embeddings", 512),
            token_types=read.positive("type_vocab_size", 2),
            layer_norm_eps=read.number("layer_norm_eps", 1e-12),
            activation=read.activation("hidden_act", "gelu"),
        )


class Attention(nnx.Module):
    """Self-attention in which every token sees every other one; q, k and v are one matrix ``[3 N H, D]``."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype) -> None:
        D = config.hidden_size
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.qkv = Linear(D, 3 * D, dtype=dtype, spec=P("tp", None), bias=True)
        self.output = Linear(D, D, dtype=dtype, spec=P(None, "tp"), bias=True)

    @jax.named_scope("attention")
    def __call__(self, x: Float[Array, "T D"], real: Bool[Array, "B L"]) -> Float[Array, "T D"]:
        B, L = real.shape
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(B, L, 3, self.heads, self.head_dim), 2, 0)
        scores = jnp.einsum("bqnh,bknh->bnqk", q, k, preferred_element_type=jnp.float32) * self.head_dim**-0.5
        # a row of padding has at least one real key in its sequence, so no softmax is over nothing
        weights = jax.nn.softmax(jnp.where(real[:, None, None], scores, -jnp.inf), axis=-1)
        y = jnp.einsum("bnqk,bknh->bqnh", weights.astype(v.dtype), v)
        return self.output(y.reshape(x.shape))


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with a residual around it and a norm after that."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype) -> None:
        c = config
        self.activation = c.activation
        self.attention = Attention(c, dtype)
        self.attention_norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.up = Linear(c.hidden_size, c.intermediate_size, dtype=dtype, spec=P("tp", None), bias=True)
        self.down = Linear(c.intermediate_size, c.hidden_size, dtype=dtype, spec=P(None, "tp"), bias=True)
        self.mlp_norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps)

    def __call__(self, x: Float[Array, "T D"], real: Bool[Array, "B L"]) -> Float[Array, "T D"]:
        x = self.attention_norm(x + self.attention(x, real))
        with jax.named_scope("mlp"):
            return self.mlp_norm(x + self.down(ACTIVATIONS[self.activation](self.up(x))))


class Bert(nnx.Module):
    """The encoder. All text is of token type 0: pairs are for other uses than embeddings."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype) -> None:
        c = config
        self.words = Embedding(c.vocab_size, c.hidden_size, dtype=dtype)
        self.positions = Embedding(c.context_length, c.hidden_size, dtype=dtype)
        self.types = Embedding(c.token_types, c.hidden_size, dtype=dtype)
        self.norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.layers = nnx.List([Block(c, dtype) for _ in range(c.num_layers)])

    def __call__(self, tokens: Int[Array, "B L"], counts: Int[Array, "B"]) -> Float[Array, "B L D"]:
        """Hidden states of B sequences, each of ``counts`` tokens (at least one) and padding after them."""
        B, L = tokens.shape
        place = jnp.arange(L, dtype=jnp.int32)
        x = self.words(tokens) + self.positions(place) + self.types(jnp.zeros((1,), jnp.int32))
        x = self.norm(x.reshape(B * L, -1))
        real = place < counts[:, None]
        for layer in self.layers:
            x = layer(x, real)
        return x.reshape(B, L, -1)
