"""A model that says what it was told to: one layer of attention that looks for a line, and a table of lines.

Every answer is a function of the cache alone. Attention finds the last token that names a line, wherever chunks,
shared pages or preemption put it, and how far back it stands; the logits then say that line's token at that distance.
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
from cvllm_jax.models.layers import BlockBatch
from cvllm_jax.models.registry import Family
from cvllm_jax.testing.preference import BRACE, BRACKET, FORMS
from cvllm_jax.testing.vocabulary import FIRST_LINE, MAX_LINES, VOCABULARY_SIZE
from pallas_kernels.kv_write import KvPages, rotate_and_write
from pallas_kernels.paged_attention import paged_attention

__all__ = ["SCRIPTED", "Scripted", "ScriptedConfig"]

CONTEXT_LENGTH = 1 << 15
POSITION_BITS = CONTEXT_LENGTH.bit_length() - 1
LINE_BITS = (MAX_LINES - 1).bit_length()
HEAD_DIM = 64  # what the kernels for GPUs take; 1 + POSITION_BITS + LINE_BITS of it are used

#: By how much the logit of a line's token exceeds that of one that stands a position earlier: of 2^15 earlier tokens
#: together, the softmax leaves less than 0.004.
GAP = 16.0

LETTERS = 26


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedConfig:
    """Dimensions; only the size of the table depends on the script."""

    table_size: int
    """Tokens that there is room for in all lines together."""
    vocab_size: int = VOCABULARY_SIZE
    hidden_size: int = 3
    num_layers: int = 1
    num_attention_heads: int = 1
    num_key_value_heads: int = 1
    head_dim: int = HEAD_DIM
    rotary_dim: int = HEAD_DIM
    context_length: int = CONTEXT_LENGTH
    experts: None = None
    shares_values: bool = False
    index_dim: int = 0
    recurrent: None = None
    cache_groups: tuple[CacheGroup, ...] = (CacheGroup(None, (0,)),)

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> ScriptedConfig:
        return ScriptedConfig(table_size=ConfigReader(config).positive("table_size"))


class Scripted(nnx.Module):
    """Says line k of its table behind the k-th of the tokens that name lines, then the end token.

    A hidden state is the line (-1 if none was named), the distance to its name, and the last token. Keys and values
    are bits, 0 and 1 or -1 and 1, which every type of cache holds exactly.
    """

    def __init__(self, config: ScriptedConfig, dtype: jnp.dtype) -> None:
        self.dtype = dtype

        def parameter(shape: tuple[int, ...], kind: Any = jnp.int32) -> nnx.Param[jax.Array]:
            return nnx.Param(jnp.zeros(shape, kind), spec=P())

        self.table = parameter((config.table_size,))
        self.starts = parameter((MAX_LINES,))
        self.lengths = parameter((MAX_LINES,))
        self.end = parameter((1,))
        self.preference = parameter((FORMS, config.vocab_size), jnp.float32)

    def __call__(
        self, tokens: Int[Array, "T"], cache: tuple[KvPages, ...], batches: tuple[BlockBatch, ...]
    ) -> tuple[Float[Array, "T D"], tuple[KvPages, ...]]:
        """The hidden states of the step's tokens, and the cache with their keys and values."""
        (batch,) = batches
        T = len(tokens)
        line = tokens - FIRST_LINE
        named = (line >= 0) & (line < MAX_LINES)
        position_bits, line_bits = _bits(batch.positions, POSITION_BITS), _bits(line, LINE_BITS)
        # the later a name stands, the larger its logit; other tokens have logit 0
        key = _vector(named, [jnp.ones((T, 1)), position_bits])
        value = _vector(named, [jnp.ones((T, 1)), 2 * position_bits - 1, 2 * line_bits - 1])
        places = jnp.asarray([1, *(1 << bit for bit in range(POSITION_BITS))], jnp.float32)
        query = jnp.broadcast_to(jnp.pad(places, (0, HEAD_DIM - len(places))), (T, HEAD_DIM))

        unrotated = (jnp.ones((T, 1, HEAD_DIM // 2), jnp.float32), jnp.zeros((T, 1, HEAD_DIM // 2), jnp.float32))
        q, layer = rotate_and_write(
            jnp.stack([query, key, value], axis=1).astype(self.dtype), unrotated, cache[0], batch.page, batch.offset,
            implementation=batch.kernels.kv_write,
        )  # fmt: skip
        attended = paged_attention(
            batch.blocks(q), layer.k, layer.v, batch.tables, batch.starts, batch.counts,
            scale=GAP, k_scales=layer.k_scales, v_scales=layer.v_scales, implementation=batch.kernels.attention,
        )  # fmt: skip
        found = batch.tokens(attended).reshape(T, HEAD_DIM)

        signs = found > 0
        any_named = found[:, 0] > 0.5
        last = _number(signs[:, 1 : 1 + POSITION_BITS])
        last_line = _number(signs[:, 1 + POSITION_BITS : 1 + POSITION_BITS + LINE_BITS])
        hidden = [
            jnp.where(any_named, last_line, -1), batch.positions - jnp.where(any_named, last, 0), tokens,
        ]  # fmt: skip
        return jnp.stack(hidden, axis=1).astype(jnp.float32), (layer,)

    @jax.named_scope("head")
    def logits(self, hidden: Float[Array, "R D"]) -> Float[Array, "R V"]:
        """0 for what the script says, and what :mod:`cvllm_jax.testing.preference` says for all else."""
        line, distance, token = hidden.astype(jnp.int32).T
        known = jnp.maximum(line, 0)
        at = jnp.minimum(self.starts[...][known] + distance, len(self.table) - 1)
        says = jnp.where(distance < self.lengths[...][known], self.table[...][at], self.end[...])
        says = jnp.where(line >= 0, says, ord("a") + (distance + 1) % LETTERS)
        form = jnp.where(token == ord("{"), BRACE, jnp.where(token == ord("["), BRACKET, 0))
        preference = self.preference[...][form]
        return jnp.where(jnp.arange(preference.shape[1]) == says[:, None], 0.0, preference)


def _bits(numbers: Int[Array, "T"], count: int) -> Int[Array, "T C"]:
    """The lowest bits, the least first."""
    return (numbers[:, None] >> jnp.arange(count, dtype=jnp.int32)) & 1


def _number(bits: Bool[Array, "T C"]) -> Int[Array, "T"]:
    return (bits.astype(jnp.int32) << jnp.arange(bits.shape[1], dtype=jnp.int32)).sum(1)


def _vector(wanted: Bool[Array, "T"], parts: list[jax.Array]) -> Float[Array, "T H"]:
    """The parts side by side and then zeros; all zeros for tokens that are not wanted."""
    vector = jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=1)
    return jnp.where(wanted[:, None], jnp.pad(vector, ((0, 0), (0, HEAD_DIM - vector.shape[1]))), 0.0)


SCRIPTED = Family(
    name="scripted",
    architectures=("ScriptedForCausalLM",),
    model_types=("scripted",),
    config=ScriptedConfig.from_dict,
    module=Scripted,
)
"""Not among the families of checkpoints: nothing but a script is run by it."""
