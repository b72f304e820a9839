"""Tensor names of StarCoder 2."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, NORMS, QKV, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(
    name="starcoder2",
    architecture="Starcoder2ForCausalLM",
    constants={"model_type": "starcoder2"},
    flags={"use_bias": "blk.0.attn_q.bias"},
    norm_eps="norm_epsilon",
)


RULES = (
    *ENDS,
    *QKV,
    *ATTENTION_OUTPUT,
    *modules("layers.{i}.mlp.up", ("mlp.c_fc",), ("ffn_up",)),
    *modules("layers.{i}.mlp.down", ("mlp.c_proj",), ("ffn_down",)),
    *NORMS,
)
