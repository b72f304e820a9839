"""Tensor names of Mixtral. Its GGUF files call themselves llama, and rotate neighbouring rows as these do."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, INTERLEAVED_QKV, NORMS, experts, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(
    name="llama",
    architecture="MixtralForCausalLM",
    experts="num_local_experts",
    constants={"model_type": "mixtral", "hidden_act": "silu"},
)

RULES = (
    *ENDS,
    *INTERLEAVED_QKV,
    *ATTENTION_OUTPUT,
    *modules("layers.{i}.mlp.router", ("block_sparse_moe.gate",), ("ffn_gate_inp",)),
    *experts("block_sparse_moe.experts.{e}.", gate="w1", up="w3", down="w2"),
    *NORMS,
)
