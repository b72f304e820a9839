"""StableLM and StableLM 2 (arXiv 2402.17834): layer norms, a quarter of each head rotated.

Reference: transformers' StableLmForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from cvllm_jax.models.config_reading import ConfigReader
from cvllm_jax.models.decoder import Decoder, DecoderConfig, read_sizes
from cvllm_jax.models.layers import Attention, GatedMlp, LayerNorm, ParallelBlock, PreNormBlock, Rope

__all__ = ["StableLm", "StableLmConfig"]

_DEFAULTS = {"max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25}


@dataclass(frozen=True, slots=True, kw_only=True)
class StableLmConfig(DecoderConfig):
    qkv_bias: bool
    qk_norm: bool
    parallel: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> StableLmConfig:
        """From the keys of a Hugging Face ``config.json``; options that are not ported are refused."""
        read = ConfigReader(config, _DEFAULTS)
        sizes = read_sizes(read, norm_eps="layer_norm_eps")
        return StableLmConfig(
            **sizes,
            ropes=(Rope.from_config(read.config, sizes["head_dim"], partial=True),) * sizes["num_layers"],
            windows=(None,) * sizes["num_layers"],
            qkv_bias=read.flag("use_qkv_bias"),
            qk_norm=read.flag("qk_layernorm"),
            parallel=read.flag("use_parallel_residual"),
        )


class HeadNorm(nnx.Module):
    """A layer norm for each head, with gains of its own and no bias."""

    def __init__(self, heads: int, head_dim: int, *, eps: float) -> None:
        self.weight = nnx.Param(jnp.zeros((heads, head_dim), jnp.float32), spec=P())
        self.eps = eps

    def __call__(self, x: Float[Array, "T N H"]) -> Float[Array, "T N H"]:
        y = x.astype(jnp.float32)
        y -= jnp.mean(y, axis=-1, keepdims=True)
        y *= lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.weight[...]).astype(x.dtype)


class StableLm(Decoder):
    def __init__(self, config: StableLmConfig, dtype: jnp.dtype) -> None:
        c = config

        def norm() -> LayerNorm:
            return LayerNorm(c.hidden_size, eps=c.norm_eps)

        def head_norm(heads: int) -> HeadNorm | None:
            return HeadNorm(heads, c.head_dim, eps=c.norm_eps) if c.qk_norm else None

        def block() -> PreNormBlock | ParallelBlock:
            attention = Attention(
                c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, dtype=dtype, bias=c.qkv_bias,
                q_norm=head_norm(c.num_attention_heads), k_norm=head_norm(c.num_key_value_heads),
            )  # fmt: skip
            mlp = GatedMlp(c.hidden_size, c.intermediate_size, dtype=dtype, activation=c.activation)
            if c.parallel:
                return ParallelBlock(norm(), attention, mlp)
            return PreNormBlock(norm(), attention, norm(), mlp)

        super().__init__(c, [block() for _ in range(c.num_layers)], norm(), dtype)
