"""Tensor names of Phi-3, Phi-3.5 and Phi-4, whose fused matrices are in the engine's order."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, NORMS, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(name="phi3", architecture="Phi3ForCausalLM", constants={"model_type": "phi3"})


RULES = (
    *ENDS,
    *modules("layers.{i}.attention.qkv", ("self_attn.qkv_proj",), ("attn_qkv",)),
    *ATTENTION_OUTPUT,
    *modules("layers.{i}.mlp.gate_up", ("mlp.gate_up_proj",), ("ffn_up",)),
    *modules("layers.{i}.mlp.down", ("mlp.down_proj",), ("ffn_down",)),
    *NORMS,
)
