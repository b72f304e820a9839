"""The layers of a decoder-only family as an encoder of texts: for embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from cvllm_jax.models.decoder import DecoderConfig
from cvllm_jax.models.layers import Embedding
from cvllm_jax.models.layers.encoder_attention import TextBatch

__all__ = ["TextEncoder"]


class TextEncoder(nnx.Module):
    """Tokens of whole texts to hidden states after the last norm, without a cache and without a head.

    Arguments:
      blocks: as those of :class:`cvllm_jax.models.decoder.Decoder`, around an ``EncoderAttention`` each.
      bidirectional: whether tokens see those after them too.
      embedding_scale: multiplies token vectors.
    """

    def __init__(
        self, config: DecoderConfig, blocks: Sequence[nnx.Module], norm: nnx.Module, dtype: jnp.dtype, *,
        bidirectional: bool, embedding_scale: float = 1.0,
    ) -> None:  # fmt: skip
        self.ropes = config.ropes
        self.bidirectional, self.embedding_scale = bidirectional, embedding_scale
        self.embed = Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nnx.List(blocks)
        self.norm: Any = norm

    def __call__(self, tokens: Int[Array, "B L"], counts: Int[Array, "B"]) -> Float[Array, "B L D"]:
        """Hidden states of B texts, each of ``counts`` tokens (at least one) and padding after them."""
        B, L = tokens.shape
        x = self.embed(tokens.reshape(-1))
        if self.embedding_scale != 1:
            x *= jnp.asarray(self.embedding_scale, x.dtype)
        positions = jnp.tile(jnp.arange(L, dtype=jnp.int32), B)
        tables = {rope: rope.tables(positions) for rope in dict.fromkeys(self.ropes)}
        batch = TextBatch(counts=counts, bidirectional=self.bidirectional)
        for layer, rope in zip(self.layers, self.ropes, strict=True):
            x, _ = layer(x, None, batch, tables[rope])
        return self.norm(x).reshape(B, L, -1)
