"""DeepSeek-V3.2 (arXiv 2512.02556) and GLM-5: DeepSeek V3 whose layers attend to the tokens that an indexer selects.

Reference: transformers' DeepseekV32ForCausalLM and GlmMoeDsaForCausalLM. The layers that predict further tokens are
not loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder
from cvllm_jax.models.deepseek import (
    V3_DEFAULTS,
    DeepseekConfig,
    dense_mlp,
    latent_options,
    mixture,
    read_deepseek_v3,
)  # fmt: skip
from cvllm_jax.models.layers import BlockBatch, RmsNorm, RopeTables
from cvllm_jax.models.layers.indexed_attention import IndexedAttention, IndexedBlock, Indexer
from pallas_kernels.kv_write import KvPages

__all__ = ["DeepseekV32", "DeepseekV32Config", "GlmMoeDsaConfig"]

_DEFAULTS = {
    **V3_DEFAULTS,
    "max_position_embeddings": 163_840,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 64,
}
_GLM = {
    "max_position_embeddings": 202_752,
    "rms_norm_eps": 1e-5,
    "q_lora_rank": 2048,
    "n_group": 1,
    "topk_group": 1,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "index_n_heads": 32,
    "indexer_rope_interleave": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekV32Config(DeepseekConfig):
    """``index_dim`` is the size of an indexer's heads."""

    index_heads: int
    selected: int
    """Tokens that a query attends to at most."""
    index_interleaved: bool
    has_indexer: tuple[bool, ...]
    """Whether each layer selects tokens; else it takes those of the layer before."""

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> DeepseekV32Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        read.require("rope_interleave", True)
        read.require("indexer_types", None)
        return DeepseekV32Config(**_read(read), has_indexer=(True,) * read.positive("num_hidden_layers"))


class GlmMoeDsaConfig(DeepseekV32Config):
    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> DeepseekV32Config:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS | _GLM)
        read.require("rope_interleave", True)
        return DeepseekV32Config(**_read(read), has_indexer=_layers_with_indexers(read))


def _read(read: ConfigReader) -> dict[str, Any]:
    read.require("mlp_bias", False)  # transformers reads it and does not use it
    fields = read_deepseek_v3(read)
    index_dim, rotated = read.positive("index_head_dim"), fields["head_dim"] - fields["rank"]
    if fields["query_rank"] is None:
        read.refuse("q_lora_rank is null: the indexer's queries are made of a vector that the model then lacks")
    if index_dim < rotated:
        read.refuse(f"index_head_dim ({index_dim}) is less than qk_rope_head_dim ({rotated})")
    return {
        **fields,
        "index_dim": index_dim,
        "index_heads": read.positive("index_n_heads"),
        "selected": read.positive("index_topk"),
        "index_interleaved": read.flag("indexer_rope_interleave"),
    }


def _layers_with_indexers(read: ConfigReader) -> tuple[bool, ...]:
    """By ``indexer_types``, ``index_topk_pattern``, or ``index_topk_freq`` and ``index_skip_topk_offset``."""
    layers = read.positive("num_hidden_layers")
    kinds = read.config.get("indexer_types") or read.config.get("index_topk_pattern")
    if kinds is None:
        every, first = max(read.whole("index_topk_freq", 1), 1), read.whole("index_skip_topk_offset", 2)
        return tuple(max(layer - first + 1, 0) % every == 0 for layer in range(layers))
    if isinstance(kinds, str):
        kinds = [{"F": "full", "S": "shared"}.get(letter, letter) for letter in kinds]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in ("full", "shared") for kind in kinds):
        read.refuse(f"indexer_types must be a list of {layers} times 'full' or 'shared', not {kinds!r:.80}")
    if kinds[0] != "full":
        read.refuse("the first layer has no indexer, and none before it whose tokens it could take")
    return tuple(kind == "full" for kind in kinds)


class DeepseekV32(Decoder):
    def __init__(self, config: DeepseekV32Config, dtype: jnp.dtype) -> None:
        c = config

        def norm() -> RmsNorm:
            return RmsNorm(c.hidden_size, eps=c.norm_eps)

        def indexer() -> Indexer:
            assert c.query_rank is not None
            return Indexer(
                c.hidden_size, c.query_rank, c.index_heads, c.index_dim, rotated=c.head_dim - c.rank,
                interleaved=c.index_interleaved, most=c.selected, dtype=dtype,
            )  # fmt: skip

        def block(has_indexer: bool, has_experts: bool) -> IndexedBlock:
            attention = IndexedAttention(
                c.hidden_size, c.num_attention_heads, indexer=indexer() if has_indexer else None,
                **latent_options(c, dtype),
            )  # fmt: skip
            mlp = mixture(c, dtype) if has_experts else dense_mlp(c, c.intermediate_size, dtype)
            return IndexedBlock(norm(), attention, norm(), mlp)

        kinds = zip(c.has_indexer, c.has_experts, strict=True)
        super().__init__(c, [block(*kind) for kind in kinds], norm(), dtype)

    def through_layers(
        self, x: Float[Array, "T D"], cache: tuple[KvPages, ...], batches: Sequence[BlockBatch],
        ropes: Sequence[RopeTables],
    ) -> tuple[Float[Array, "T D"], tuple[KvPages, ...]]:  # fmt: skip
        written, places = [], None
        for layer, layer_cache, batch, rope in zip(self.layers, cache, batches, ropes, strict=True):
            x, layer_cache, places = layer(x, layer_cache, batch, rope, places)
            written.append(layer_cache)
        return x, tuple(written)
