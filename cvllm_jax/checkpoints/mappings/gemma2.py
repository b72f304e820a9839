"""Tensor names of Gemma 2. In GGUF files the gains are whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, QKV, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture, Plus

__all__ = ["GGUF", "RULES"]

_LAYERS_OF_27B = 46


def _scale(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What scores are divided by the root of: a head's size, but in the largest model its share of the hidden size."""
    share = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": share if config["num_hidden_layers"] == _LAYERS_OF_27B else config["head_dim"]}


GGUF = GgufArchitecture(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    constants={"model_type": "gemma2"},
    keys={
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    derive=_scale,
)

RULES = (
    *ENDS,
    *QKV,
    *ATTENTION_OUTPUT,
    *GATED_MLP,
    *modules("layers.{i}.attention_norm", (Plus("input_layernorm", 1),), ("attn_norm",)),
    *modules("layers.{i}.attention_post_norm", (Plus("post_attention_layernorm", 1),), ("post_attention_norm",)),
    *modules("layers.{i}.mlp_norm", (Plus("pre_feedforward_layernorm", 1),), ("ffn_norm",)),
    *modules("layers.{i}.mlp_post_norm", (Plus("post_feedforward_layernorm", 1),), ("post_ffw_norm",)),
    *modules("norm", (Plus("model.norm", 1),), ("output_norm",)),
)
