"""Tensor names of Qwen3.5, text: those of Qwen3-Next, but q, k, v and z, b and a are matrices of their own."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import modules
from cvllm_jax.checkpoints.mappings.qwen3_next import hybrid
from cvllm_jax.checkpoints.mappings.rules import Rule

__all__ = ["RULES"]

RULES = hybrid(
    *modules("layers.{i}.attention.qkvz", ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z")),
    *modules("layers.{i}.attention.ba", ("linear_attn.in_proj_b", "linear_attn.in_proj_a")),
    # the experts of a layer in one tensor, or each in its own
    *(
        Rule(target=f"layers.{{i}}.mlp.experts.{target}", hf=(f"model.layers.{{i}}.mlp.experts.{name}",))
        for target, name in (("gate_up", "gate_up_proj"), ("down", "down_proj"))
    ),
)
