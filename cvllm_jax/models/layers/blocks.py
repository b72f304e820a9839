"""How a layer puts norms and residuals around attention and feed-forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from flax import nnx
from jaxtyping import Array, Float

from cvllm_jax.models.layers.attention import Attention, BlockBatch
from cvllm_jax.models.layers.rope import RopeTables
from cvllm_jax.models.recurrent import LayerCache
from pallas_kernels.kv_write import KvPages

__all__ = ["ParallelBlock", "PreNormBlock", "SandwichBlock", "SelfAttention"]

#: A norm or a feed-forward block.
type Part = Callable[[Float[Array, "T D"]], Float[Array, "T D"]]


class SelfAttention(Protocol):
    """:class:`Attention`, or a module that is called like it."""

    def __call__(
        self, x: Float[Array, "T D"], cache: LayerCache, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], LayerCache]: ...


class PreNormBlock(nnx.Module):
    """Attention, then feed-forward, each with a norm before and a residual around it.

    Arguments:
      residual_scale: multiplies what each part adds.
    """

    def __init__(
        self, attention_norm: Part, attention: SelfAttention, mlp_norm: Part, mlp: Part, *, residual_scale: float = 1.0
    ) -> None:
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp
        self.residual_scale = residual_scale

    def __call__(
        self, x: Float[Array, "T D"], cache: LayerCache, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], LayerCache]:
        y, cache = self.attention(self.attention_norm(x), cache, batch, rope)
        x = x + self._scaled(y)
        return x + self._scaled(self.mlp(self.mlp_norm(x))), cache

    def _scaled(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        return x if self.residual_scale == 1 else x * self.residual_scale


class SandwichBlock(nnx.Module):
    """Attention, then feed-forward, each with a norm before and after it and a residual around all three."""

    def __init__(
        self, attention_norm: Part, attention: Attention, attention_post_norm: Part,
        mlp_norm: Part, mlp: Part, mlp_post_norm: Part,
    ) -> None:  # fmt: skip
        self.attention_norm, self.attention, self.attention_post_norm = attention_norm, attention, attention_post_norm
        self.mlp_norm, self.mlp, self.mlp_post_norm = mlp_norm, mlp, mlp_post_norm

    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        y, cache = self.attention(self.attention_norm(x), cache, batch, rope)
        x = x + self.attention_post_norm(y)
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x))), cache


class ParallelBlock(nnx.Module):
    """Attention and feed-forward of the same normalised input, and one residual around both (GPT-J)."""

    def __init__(self, norm: Part, attention: Attention, mlp: Part) -> None:
        self.norm, self.attention, self.mlp = norm, attention, mlp

    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        normed = self.norm(x)
        y, cache = self.attention(normed, cache, batch, rope)
        return x + y + self.mlp(normed), cache
