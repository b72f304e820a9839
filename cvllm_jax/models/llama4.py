"""Llama 4, text: attention in chunks, but in every fourth layer of everything and without positions.

Reference: transformers' Llama4ForCausalLM. Loading reorders queries and keys, so that the rotation is everyone else's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cvllm_jax.models.config_reading import FULL, ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_experts, read_sizes
from cvllm_jax.models.layers import Attention, BlockBatch, GatedMlp, PreNormBlock, RmsNorm, Rope, RopeTables
from cvllm_jax.models.layers.chunked_attention import chunked_attention
from cvllm_jax.models.layers.moe import Experts, Glu, MoeBlock, MoeMlp, Router
from cvllm_jax.models.layers.norm import rms_normalize
from pallas_kernels.kv_write import KvPages, rotate_and_write
from pallas_kernels.paged_attention import paged_attention

__all__ = ["Llama4", "Llama4Config"]

_CHUNKED = "chunked_attention"
_DEFAULTS = {
    "vocab_size": 202_048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16_384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
    "interleave_moe_layer_step": 1,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    "floor_scale": 8192,
    "attn_scale": 0.1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama4Config(DecoderConfig):
    chunks: tuple[int | None, ...]
    """Positions of a chunk in each layer; None in layers that see all."""
    rotated: tuple[bool, ...]
    """Layers that have positions; queries of the others may grow with theirs."""
    expert_layers: tuple[int, ...]
    dense_size: int
    """Channels between the two products of layers without experts."""
    qk_norm: bool
    attention_bias: bool
    temperature: tuple[float, float] | None
    """By how much queries of layers without positions grow, and the positions after which they do."""

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Llama4Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        sizes = read_sizes(read)
        layers, head_dim = sizes["num_layers"], sizes["head_dim"]
        rotated = _rotated(read, layers)
        # the other kinds scale cosines too, which the norm after the rotation takes back
        kinds = ("default", "linear", "llama3")
        rope = Rope.from_config(read.config, head_dim, theta=500_000.0, supported=kinds)
        tuned = read.flag("attn_temperature_tuning", True)
        return Llama4Config(
            **sizes,
            ropes=tuple(rope if turned else Rope.none(head_dim) for turned in rotated),
            windows=(None,) * layers,
            experts=read_experts(read, "num_local_experts", "intermediate_size"),
            chunks=_chunks(read, rotated),
            rotated=rotated,
            expert_layers=_expert_layers(read, layers),
            dense_size=read.positive("intermediate_size_mlp"),
            qk_norm=read.flag("use_qk_norm", True),
            attention_bias=read.flag("attention_bias"),
            temperature=(read.number("attn_scale", 0.1), read.positive_number("floor_scale")) if tuned else None,
        )


def _rotated(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """Which layers have positions: ``no_rope_layers`` has a 1 for each that does."""
    flags = read.config.get("no_rope_layers")
    if not flags:
        interval = read.positive("no_rope_layer_interval")
        return tuple((layer + 1) % interval != 0 for layer in range(layers))
    if not isinstance(flags, list) or len(flags) < layers or any(flag not in (0, 1) for flag in flags):
        read.refuse(f"no_rope_layers must be a list of 0 and 1 for {layers} layers, not {flags!r:.80}")
    return tuple(bool(flag) for flag in flags[:layers])


def _chunks(read: ConfigReader, rotated: tuple[bool, ...]) -> tuple[int | None, ...]:
    kinds = read.config.get("layer_types")
    if kinds is None:
        kinds = [_CHUNKED if turned else FULL for turned in rotated]
    if not isinstance(kinds, list) or len(kinds) < len(rotated) or any(kind not in (_CHUNKED, FULL) for kind in kinds):
        read.refuse(f"layer_types must name {_CHUNKED} or {FULL} for {len(rotated)} layers, not {kinds!r:.80}")
    return tuple(read.positive("attention_chunk_size") if kind == _CHUNKED else None for kind in kinds[: len(rotated)])


def _expert_layers(read: ConfigReader, layers: int) -> tuple[int, ...]:
    named = read.config.get("moe_layers")
    if named is None:
        step = read.positive("interleave_moe_layer_step")
        return tuple(range(step - 1, layers, step))
    if not isinstance(named, list) or any(type(layer) is not int or not 0 <= layer < layers for layer in named):
        read.refuse(f"moe_layers must be numbers of {layers} layers, not {named!r:.80}")
    return tuple(sorted(set(named)))


class UnitNorm:
    """Normalises the heads of queries or keys without a gain; the rotation after it keeps their lengths."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def __call__(self, x: Float[Array, "T N H"]) -> Float[Array, "T N H"]:
        return rms_normalize(x, self.eps).astype(x.dtype)


class Llama4Attention(Attention):
    """:class:`Attention` in chunks, or of everything by queries that grow with their positions.

    Arguments:
      chunk: positions of a chunk; None for layers that see all.
      temperature: see :class:`Llama4Config`.
    """

    def __init__(self, *sizes: int, chunk: int | None, temperature: tuple[float, float] | None, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.chunk, self.temperature = chunk, temperature

    @jax.named_scope("attention")
    def __call__(
        self, x: Float[Array, "T D"], cache: KvPages, batch: BlockBatch, rope: RopeTables
    ) -> tuple[Float[Array, "T D"], KvPages]:
        q, cache = rotate_and_write(
            self.heads_of(x), rope, cache, batch.page, batch.offset, implementation=batch.kernels.kv_write
        )
        if self.temperature is not None:
            amount, floor = self.temperature
            growth = jnp.log1p(jnp.floor((batch.positions.astype(jnp.float32) + 1) / floor)) * amount + 1
            q = (q * growth[:, None, None]).astype(q.dtype)
        q = batch.blocks(q)
        if self.chunk is not None:
            y = chunked_attention(q, cache, batch, self.chunk, scale=self.scale)
        else:
            y = paged_attention(
                q, cache.k, cache.v, batch.tables, batch.starts, batch.counts, scale=self.scale,
                k_scales=cache.k_scales, v_scales=cache.v_scales, implementation=batch.kernels.attention,
            )  # fmt: skip
        return self.output(batch.tokens(y).reshape(len(x), -1)), cache


class Llama4(Decoder):
    def __init__(self, config: Llama4Config, dtype: jnp.dtype) -> None:
        c, experts = config, config.experts
        assert experts is not None

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def mlp(hidden: int) -> GatedMlp:
            return GatedMlp(c.hidden_size, hidden, dtype=dtype, activation=c.activation)

        def block(layer: int) -> PreNormBlock | MoeBlock:
            rotated = c.rotated[layer]
            unit = UnitNorm(c.norm_eps) if c.qk_norm and rotated else None
            attention = Llama4Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim,
                dtype=dtype, bias=c.attention_bias, output_bias=c.attention_bias, q_norm=unit, k_norm=unit,
                chunk=c.chunks[layer], temperature=None if rotated else c.temperature,
            )  # fmt: skip
            if layer not in c.expert_layers:
                return PreNormBlock(norm(), attention, norm(), mlp(c.dense_size))
            router = Router(c.hidden_size, experts.experts, experts.chosen, score="sigmoid", normalize=False)
            routed = Experts(experts, c.hidden_size, dtype=dtype, activation=Glu(c.activation), weigh_inputs=True)
            return MoeBlock(norm(), attention, norm(), MoeMlp(router, routed, shared=mlp(c.intermediate_size)))

        super().__init__(c, [block(layer) for layer in range(c.num_layers)], norm(), dtype)
