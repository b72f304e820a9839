"""What decoder-only families share: the common part of their configurations, and the way from tokens to logits.

A family adds a block, which is where families differ, and says what its configuration's keys mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cvllm_jax.models.cache_groups import CacheGroup, cache_groups, group_of_layers
from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.layers import BlockBatch, Embedding, Linear, Rope, RopeTables
from cvllm_jax.models.layers.moe import ExpertSizes
from cvllm_jax.models.recurrent import LayerCache, RecurrentLayers

__all__ = ["Decoder", "DecoderConfig", "read_experts", "read_sizes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Dimensions and options; see :class:`cvllm_jax.models.registry.ModelConfig` for what the engine asks for."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    context_length: int
    norm_eps: float
    activation: str
    tie_embeddings: bool
    ropes: tuple[Rope, ...]
    """The rotation of each layer."""
    windows: tuple[int | None, ...]
    """The latest positions that each layer attends to; None for all."""
    experts: ExpertSizes | None = None
    shares_values: bool = False
    index_dim: int = 0
    recurrent: RecurrentLayers | None = None

    @property
    def rotary_dim(self) -> int:
        return 2 * len(self.ropes[0].frequencies)

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        return cache_groups(self.windows)


def read_sizes(
    read: ConfigReader, *, norm_eps: str = "rms_norm_eps", activation: str = "hidden_act"
) -> dict[str, Any]:
    """The fields of a :class:`DecoderConfig` that families read alike: all but ``ropes`` and ``windows``.

    Arguments:
      norm_eps, activation: what the family calls these keys.
    """
    heads, hidden = read.positive("num_attention_heads"), read.positive("hidden_size")
    kv_heads = read.positive("num_key_value_heads", heads)
    head_dim = read.positive("head_dim", hidden // heads)
    if heads % kv_heads:
        read.refuse(f"num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})")
    if head_dim % 2:
        read.refuse(f"head_dim must be even, not {head_dim}")
    return {
        "vocab_size": read.positive("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": read.positive("intermediate_size"),
        "num_layers": read.positive("num_hidden_layers", most=1024),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "context_length": read.positive("max_position_embeddings", 2048),
        "norm_eps": read.number(norm_eps, 1e-6),
        "activation": read.activation(activation, "silu"),
        "tie_embeddings": read.flag("tie_word_embeddings"),
    }


def read_experts(
    read: ConfigReader, count: str, hidden: str = "moe_intermediate_size", chosen: str = "num_experts_per_tok"
) -> ExpertSizes:
    """The sizes of a mixture of experts.

    Arguments:
      count, hidden, chosen: what the family calls the number of experts, the channels between an expert's two products
        and the experts of a token.
    """
    sizes = ExpertSizes(read.positive(count, most=4096), read.positive(hidden), read.positive(chosen))
    if sizes.chosen > sizes.experts:
        read.refuse(f"{chosen} is {sizes.chosen}, of {sizes.experts} experts")
    return sizes


class Decoder(nnx.Module):
    """Tokens to hidden states through blocks, and hidden states to logits.

    Arguments:
      blocks: one a layer, called as ``x, cache = block(x, cache, batch, rope)``.
      norm: what the last block's output goes through.
      embedding_scale, logit_scale: multiply token vectors and logits.
      logit_soft_cap: bounds the logits by ``cap * tanh(logits / cap)``.
      head_bias: whether the head has a bias, where it is no tied embedding.
    """

    def __init__(
        self, config: DecoderConfig, blocks: Sequence[nnx.Module], norm: nnx.Module, dtype: jnp.dtype, *,
        embedding_scale: float = 1.0, logit_scale: float = 1.0, logit_soft_cap: float | None = None,
        head_bias: bool = False,
    ) -> None:  # fmt: skip
        c = config
        self.ropes = c.ropes
        self.groups = group_of_layers(c.cache_groups, () if c.recurrent is None else c.recurrent.layers)
        self.embedding_scale, self.logit_scale, self.logit_soft_cap = embedding_scale, logit_scale, logit_soft_cap
        self.embed = Embedding(c.vocab_size, c.hidden_size, dtype=dtype)
        self.layers = nnx.List(blocks)
        self.norm = norm
        self.head = (
            None
            if c.tie_embeddings
            else Linear(c.hidden_size, c.vocab_size, dtype=dtype, spec=P("tp", None), bias=head_bias)
        )

    def __call__(
        self, tokens: Int[Array, "T"], cache: tuple[LayerCache, ...], batches: tuple[BlockBatch, ...]
    ) -> tuple[Float[Array, "T D"], tuple[LayerCache, ...]]:
        """Hidden states of the step's tokens after the last norm, and the cache with their keys and values.

        Arguments:
          cache: of each layer.
          batches: of each cache group; they differ in pages and block tables.
        """
        x = self.embed(tokens)
        if self.embedding_scale != 1:
            x *= jnp.asarray(self.embedding_scale, x.dtype)
        tables = {rope: rope.tables(batches[0].positions) for rope in dict.fromkeys(self.ropes)}
        of_layers = [batches[group] for group in self.groups]
        x, cache = self.through_layers(x, cache, of_layers, [tables[rope] for rope in self.ropes])
        return self.norm(x), cache

    def through_layers(
        self, x: Float[Array, "T D"], cache: tuple[LayerCache, ...], batches: Sequence[BlockBatch],
        ropes: Sequence[RopeTables],
    ) -> tuple[Float[Array, "T D"], tuple[LayerCache, ...]]:  # fmt: skip
        """Override where layers hand on more than hidden states."""
        written = []
        for layer, layer_cache, batch, rope in zip(self.layers, cache, batches, ropes, strict=True):
            x, layer_cache = layer(x, layer_cache, batch, rope)
            written.append(layer_cache)
        return x, tuple(written)

    @jax.named_scope("head")
    def logits(self, hidden: Float[Array, "R D"]) -> Float[Array, "R V"]:
        """Unnormalised log probabilities in f32."""
        logits = self.embed.attend(hidden) if self.head is None else self.head(hidden, jnp.float32)
        if self.logit_scale != 1:
            logits *= self.logit_scale
        return logits if self.logit_soft_cap is None else jnp.tanh(logits / self.logit_soft_cap) * self.logit_soft_cap
