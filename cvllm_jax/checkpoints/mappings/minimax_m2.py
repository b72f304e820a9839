"""Tensor names of MiniMax-M2."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, NORMS, QK_NORMS, QKV, experts, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture, Rule

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(
    name="minimax-m2",
    architecture="MiniMaxM2ForCausalLM",
    experts="num_local_experts",
    constants={"model_type": "minimax_m2"},
)

RULES = (
    *ENDS,
    *QKV,
    *QK_NORMS,
    *ATTENTION_OUTPUT,
    *modules("layers.{i}.mlp.router", ("block_sparse_moe.gate",), ("ffn_gate_inp",)),
    Rule(
        target="layers.{i}.mlp.router.correction",
        hf=("model.layers.{i}.block_sparse_moe.e_score_correction_bias",),
        gguf=("blk.{i}.exp_probs_b.bias",),
    ),
    *experts("block_sparse_moe.experts.{e}.", gate="w1", up="w3", down="w2"),
    *NORMS,
)
