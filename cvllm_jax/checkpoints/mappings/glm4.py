"""Tensor names of GLM-4 (0414), which rotates neighbouring rows in both formats."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture, Interleaved, Source

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(
    name="glm4",
    architecture="Glm4ForCausalLM",
    constants={"model_type": "glm4", "partial_rotary_factor": 1.0},
)


def _qkv(name: str) -> tuple[Source, ...]:
    return (
        Interleaved(name.format("q"), heads="num_attention_heads", rotated=0.5),
        Interleaved(name.format("k"), heads="num_key_value_heads", rotated=0.5),
        name.format("v"),
    )


RULES = (
    *ENDS,
    *modules("layers.{i}.attention.qkv", _qkv("self_attn.{}_proj"), _qkv("attn_{}")),
    *ATTENTION_OUTPUT,
    *modules("layers.{i}.mlp.gate_up", ("mlp.gate_up_proj",), ("ffn_up",)),
    *modules("layers.{i}.mlp.down", ("mlp.down_proj",), ("ffn_down",)),
    *modules("layers.{i}.attention_norm", ("input_layernorm",), ("attn_norm",)),
    *modules("layers.{i}.attention_post_norm", ("post_self_attn_layernorm",), ("post_attention_norm",)),
    *modules("layers.{i}.mlp_norm", ("post_attention_layernorm",), ("ffn_norm",)),
    *modules("layers.{i}.mlp_post_norm", ("post_mlp_layernorm",), ("post_ffw_norm",)),
    *modules("norm", ("model.norm",), ("output_norm",)),
)
