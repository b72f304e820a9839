"""Mixtures of experts: a router picks a few of many feed-forward blocks for each token (arXiv 1701.06538)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from cvllm_jax.models.layers.activation import ACTIVATIONS
from cvllm_jax.models.layers.attention import BlockBatch
from cvllm_jax.models.layers.blocks import Part, SelfAttention
from cvllm_jax.models.layers.linear import Weighted
from cvllm_jax.models.layers.rope import RopeTables
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.kv_write import KvPages

__all__ = ["ClampedSwiglu", "ExpertSizes", "Experts", "Glu", "Groups", "MoeBlock", "MoeMlp", "Router"]

class ExpertSizes(NamedTuple):
    """What the kernel for experts must cope with, besides the width of the hidden states."""

    experts: int
    hidden: int
    """Channels between an expert's two products."""
    chosen: int
    """Experts of a token."""


class Groups(NamedTuple):
    """Experts lie in groups one after another, and only those of a token's best groups can be chosen."""

    groups: int
    chosen: int
    best: int
    """A group is as good as the sum of so many of its best experts."""


@dataclass(frozen=True, slots=True)
class Glu:
    """``act(gate) * up`` (GLU variants, arXiv 2002.05202)."""

    activation: str

    def __call__(self, gate: Float[Array, "R H"], up: Float[Array, "R H"]) -> Float[Array, "R H"]:
        return ACTIVATIONS[self.activation](gate) * up


@dataclass(frozen=True, slots=True)
class ClampedSwiglu:
    """``gate * sigmoid(alpha * gate) * (up + 1)`` with both bounded by ``limit``, the gate from above only."""

    alpha: float
    limit: float

    def __call__(self, gate: Float[Array, "R H"], up: Float[Array, "R H"]) -> Float[Array, "R H"]:
        gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
        return gate * jax.nn.sigmoid(self.alpha * gate) * (up + 1)


class Router(nnx.Module):
    """The experts of each token and their weights, in f32: a difference in rounding would choose other experts.

    Arguments:
      chosen: experts of a token.
      score: what makes scores of the logits.
      normalize: whether the weights of a token's experts add up to 1.
      scale: multiplies the weights.
      groups: limits the choice to some groups of experts.
      bias: whether the logits have one.
      correction: whether a term for each expert is added to its score for the choice, but not to its weight
        (balancing without a loss, arXiv 2408.15664).
    """

    def __init__(
        self, width: int, experts: int, chosen: int, *, score: Literal["softmax", "sigmoid"] = "softmax",
        normalize: bool = True, scale: float = 1.0, groups: Groups | None = None, bias: bool = False,
        correction: bool = False,
    ) -> None:  # fmt: skip
        self.experts, self.chosen = experts, chosen
        self.score, self.normalize, self.scale, self.groups = score, normalize, scale, groups
        self.weight = nnx.Param(jnp.zeros((experts, width), jnp.float32), spec=P())
        self.bias = nnx.Param(jnp.zeros((experts,), jnp.float32), spec=P()) if bias else None
        self.correction = nnx.Param(jnp.zeros((experts,), jnp.float32), spec=P()) if correction else None

    @jax.named_scope("router")
    def __call__(self, x: Float[Array, "T D"]) -> tuple[Float[Array, "T k"], Int[Array, "T k"]]:
        # GPUs round the factors of f32 products to 10 bits unless told otherwise
        logits = jnp.einsum("td,ed->te", x.astype(jnp.float32), self.weight[...], precision=lax.Precision.HIGHEST)
        if self.bias is not None:
            logits += self.bias[...]
        scores = jax.nn.softmax(logits) if self.score == "softmax" else jax.nn.sigmoid(logits)
        ranks = scores if self.correction is None else scores + self.correction[...]
        if self.groups is not None:
            ranks = jnp.where(self._open(ranks, self.groups), ranks, -jnp.inf)
        _, experts = lax.top_k(ranks, self.chosen)
        weights = jnp.take_along_axis(scores, experts, axis=1)
        if self.normalize:
            weights /= weights.sum(axis=1, keepdims=True) + 1e-20
        return weights * self.scale, experts

    def _open(self, ranks: Float[Array, "T E"], groups: Groups) -> Bool[Array, "T E"]:
        """The experts in the best groups."""
        grouped = ranks.reshape(len(ranks), groups.groups, -1)
        merit = lax.top_k(grouped, groups.best)[0].sum(-1)
        _, best = lax.top_k(merit, groups.chosen)
        is_best = (best[:, :, None] == jnp.arange(groups.groups)).any(1)
        return jnp.repeat(is_best, grouped.shape[2], axis=1)


class ExpertLinear(Weighted):
    """A matrix ``[out, in]`` for each expert, plain or quantised, and a bias for each if asked for."""

    def __init__(self, experts: int, inputs: int, outputs: int, *, dtype: jnp.dtype, spec: P, bias: bool) -> None:
        super().__init__((experts, outputs, inputs), dtype, spec)
        self.bias = nnx.Param(jnp.zeros((experts, outputs), dtype), spec=P(None, spec[1])) if bias else None

    def __call__(
        self, rows: Float[Array, "R I"], experts: Int[Array, "R"], sizes: Int[Array, "E"],
        implementation: Literal["xla", "hopper"],
    ) -> Float[Array, "R O"]:  # fmt: skip
        weight = self.quantized
        if weight is None:
            y = grouped_matmul(rows, self.weight[...], sizes, implementation=implementation)
        else:
            y = grouped_matmul(rows, weight, sizes, implementation="xla")
        return y if self.bias is None else y + self.bias[...].at[experts].get(mode="clip")


class Experts(nnx.Module):
    """E feed-forward blocks ``down(act(gate(x), up(x)))``, each for the rows that are routed to it.

    Gate and up are one matrix, gate first. Rows are sorted by expert, so that only the experts that some token has
    are read and multiplied.

    Arguments:
      weigh_inputs: whether a token is multiplied with its weight before the expert, instead of the result after it.
    """

    def __init__(
        self, sizes: ExpertSizes, width: int, *, dtype: jnp.dtype, activation: Glu | ClampedSwiglu, bias: bool = False,
        weigh_inputs: bool = False,
    ) -> None:  # fmt: skip
        E, H = sizes.experts, sizes.hidden
        self.experts, self.activation, self.weigh_inputs = E, activation, weigh_inputs
        self.gate_up = ExpertLinear(E, width, 2 * H, dtype=dtype, spec=P(None, "tp", None), bias=bias)
        self.down = ExpertLinear(E, H, width, dtype=dtype, spec=P(None, None, "tp"), bias=bias)

    @jax.named_scope("experts")
    def __call__(
        self, x: Float[Array, "T D"], weights: Float[Array, "T k"], experts: Int[Array, "T k"], batch: BlockBatch
    ) -> Float[Array, "T D"]:
        T, k = experts.shape
        flat = jnp.where(batch.real[:, None], experts, self.experts).reshape(-1)  # padding sorts behind all experts
        order = jnp.argsort(flat)
        sorted_experts = flat[order]
        sizes = jnp.zeros(self.experts, jnp.int32).at[flat].add(1, mode="drop")
        run = batch.kernels.experts
        rows = x[order // k]
        if self.weigh_inputs:
            rows = (rows * weights.reshape(-1)[order][:, None]).astype(x.dtype)
            weights = jnp.ones_like(weights)
        gate, up = jnp.split(self.gate_up(rows, sorted_experts, sizes, run), 2, axis=-1)
        hidden = self.activation(gate.astype(jnp.float32), up.astype(jnp.float32)).astype(x.dtype)
        y = self.down(hidden, sorted_experts, sizes, run)
        places = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=order.dtype), unique_indices=True)
        each = y[places].reshape(T, k, -1).astype(jnp.float32)
        return (each * weights[:, :, None]).sum(1).astype(x.dtype)


class MoeMlp(nnx.Module):
    """Routed experts, and beside them what every token goes through.

    Arguments:
      shared: a feed-forward block for all tokens.
      shared_gate: ``[1, D]``, whose sigmoid weighs the shared block.
    """

    def __init__(
        self, router: Router, experts: Experts, *, shared: Part | None = None, shared_gate: Part | None = None
    ) -> None:
        self.router, self.experts = router, experts
        self.shared, self.shared_gate = shared, shared_gate

    def __call__(self, x: Float[Array, "T D"], batch: BlockBatch) -> Float[Array, "T D"]:
        y = self.experts(x, *self.router(x), batch)
        if self.shared is None:
            return y
        shared = self.shared(x)
        if self.shared_gate is not None:
            shared *= jax.nn.sigmoid(self.shared_gate(x).astype(jnp.float32)).astype(x.dtype)
        return y + shared


class MoeBlock(nnx.Module):
    """As :class:`cvllm_jax.models.layers.PreNormBlock`, with a mixture of experts for feed-forward."""

    def __init__(self, attention_norm: Part, attention: SelfAttention, mlp_norm: Part, mlp: MoeMlp) -> None:
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp

    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        y, cache = self.attention(self.attention_norm(x), cache, batch, rope)
        x = x + y
        return x + self.mlp(self.mlp_norm(x), batch), cache
