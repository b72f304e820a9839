"""Tensor names of OLMo 2."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, QK_NORMS, QKV, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(name="olmo2", architecture="Olmo2ForCausalLM", constants={"model_type": "olmo2"})


RULES = (
    *ENDS,
    *QKV,
    *QK_NORMS,
    *ATTENTION_OUTPUT,
    *modules("layers.{i}.attention_post_norm", ("post_attention_layernorm",), ("post_attention_norm",)),
    *GATED_MLP,
    *modules("layers.{i}.mlp_post_norm", ("post_feedforward_layernorm",), ("post_ffw_norm",)),
    *modules("norm", ("model.norm",), ("output_norm",)),
)
