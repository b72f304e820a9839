"""Tensor names of GLM-4 of 2024, which rotates neighbouring rows."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, NORMS, modules
from cvllm_jax.checkpoints.mappings.rules import Interleaved

__all__ = ["RULES"]

RULES = (
    *ENDS,
    *modules(
        "layers.{i}.attention.qkv",
        (
            Interleaved("self_attn.q_proj", heads="num_attention_heads", rotated=0.5),
            Interleaved("self_attn.k_proj", heads="num_key_value_heads", rotated=0.5),
            "self_attn.v_proj",
        ),
    ),
    *ATTENTION_OUTPUT,
    *modules("layers.{i}.mlp.gate_up", ("mlp.gate_up_proj",)),
    *modules("layers.{i}.mlp.down", ("mlp.down_proj",)),
    *NORMS,
)
