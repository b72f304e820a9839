"""Tensor names of Phi-1, Phi-1.5 and Phi-2."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ENDS, QKV, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(
    name="phi2",
    architecture="PhiForCausalLM",
    constants={"model_type": "phi", "partial_rotary_factor": 1.0},
    norm_eps="layer_norm_eps",
)


RULES = (
    *ENDS,
    *modules("head", ("lm_head",), ("output",)),
    *QKV,
    *modules("layers.{i}.attention.qkv", (), ("attn_qkv",)),  # as older conversions have them
    *modules("layers.{i}.attention.q_norm", ("self_attn.q_layernorm",)),
    *modules("layers.{i}.attention.k_norm", ("self_attn.k_layernorm",)),
    *modules("layers.{i}.attention.output", ("self_attn.dense",), ("attn_output",)),
    *modules("layers.{i}.mlp.up", ("mlp.fc1",), ("ffn_up",)),
    *modules("layers.{i}.mlp.down", ("mlp.fc2",), ("ffn_down",)),
    *modules("layers.{i}.norm", ("input_layernorm",), ("attn_norm",)),
    *modules("norm", ("model.final_layernorm",), ("output_norm",)),
)
