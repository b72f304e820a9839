"""Tensor names of StableLM and StableLM 2."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, NORMS, QKV, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture, PerHead, Rule

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(
    name="stablelm",
    architecture="StableLmForCausalLM",
    constants={"model_type": "stablelm", "partial_rotary_factor": 1.0},
    keys={"use_parallel_residual": "use_parallel_residual"},
    flags={"use_qkv_bias": "blk.0.attn_q.bias", "qk_layernorm": "blk.0.attn_q_norm.weight"},
    norm_eps="layer_norm_eps",
)


def _qk_norm(part: str, heads: str) -> tuple[Rule, Rule]:
    hf = PerHead(f"self_attn.{part}_layernorm.norms.{{h}}", heads=heads)
    return modules(f"layers.{{i}}.attention.{part}_norm", (hf,), (f"attn_{part}_norm",))


RULES = (
    *ENDS,
    *QKV,
    *_qk_norm("q", "num_attention_heads"),
    *_qk_norm("k", "num_key_value_heads"),
    *ATTENTION_OUTPUT,
    *GATED_MLP,
    *NORMS,
    *modules("layers.{i}.norm", ("input_layernorm",), ("attn_norm",)),  # where both parts share it
)
