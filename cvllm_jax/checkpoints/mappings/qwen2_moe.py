"""Tensor names of Qwen1.5-MoE and Qwen2-MoE."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, NORMS, QKV, experts, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(
    name="qwen2moe",
    architecture="Qwen2MoeForCausalLM",
    experts="num_experts",
    constants={"model_type": "qwen2_moe", "norm_topk_prob": False},
    keys={"shared_expert_intermediate_size": "expert_shared_feed_forward_length"},
    flags={"qkv_bias": "blk.0.attn_q.bias"},
)

RULES = (
    *ENDS,
    *QKV,
    *ATTENTION_OUTPUT,
    *GATED_MLP,
    *modules("layers.{i}.mlp.router", ("mlp.gate",), ("ffn_gate_inp",)),
    *experts("mlp.experts.{e}."),
    *modules(
        "layers.{i}.mlp.shared.gate_up",
        ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
        ("ffn_gate_shexp", "ffn_up_shexp"),
    ),
    *modules("layers.{i}.mlp.shared.down", ("mlp.shared_expert.down_proj",), ("ffn_down_shexp",)),
    *modules("layers.{i}.mlp.shared_gate", ("mlp.shared_expert_gate",), ("ffn_gate_inp_shexp",)),
    *NORMS,
)
