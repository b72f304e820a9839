"""Tensor names of the Llama family (Llama, SmolLM2, Yi, Mistral)."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, NORMS, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture, Interleaved

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(
    name="llama", architecture="LlamaForCausalLM", constants={"model_type": "llama", "hidden_act": "silu"}
)

RULES = (
    *ENDS,
    *modules(
        "layers.{i}.attention.qkv",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        (
            Interleaved("attn_q", heads="num_attention_heads"),
            Interleaved("attn_k", heads="num_key_value_heads"),
            "attn_v",
        ),
    ),
    *ATTENTION_OUTPUT,
    *GATED_MLP,
    *NORMS,
)
