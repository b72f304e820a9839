"""Tensor names of Gemma 4, text."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, QK_NORMS, QKV, modules
from cvllm_jax.checkpoints.mappings.rules import Rule, Stacked

__all__ = ["RULES"]

_LAYER = "model.layers.{i}."

RULES = (
    *ENDS,
    *QKV,
    *modules("layers.{i}.attention.qk", ("self_attn.q_proj", "self_attn.k_proj")),
    *modules("layers.{i}.attention.q", ("self_attn.q_proj",)),
    *QK_NORMS,
    # layers that attend to the keys of another may still have the matrices for their own
    Rule(
        target=None,
        hf=tuple(
            f"{_LAYER}self_attn.{name}"
            for name in ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias", "k_norm.weight")
        ),
    ),
    *ATTENTION_OUTPUT,
    *GATED_MLP,
    *modules("layers.{i}.attention_norm", ("input_layernorm",)),
    *modules("layers.{i}.attention_post_norm", ("post_attention_layernorm",)),
    *modules("layers.{i}.mlp_norm", ("pre_feedforward_layernorm",)),
    *modules("layers.{i}.mlp_post_norm", ("post_feedforward_layernorm",)),
    *modules("layers.{i}.mixture.dense_norm", ("post_feedforward_layernorm_1",)),
    *modules("layers.{i}.mixture.post_norm", ("post_feedforward_layernorm_2",)),
    *modules("layers.{i}.mixture.norm", ("pre_feedforward_layernorm_2",)),
    *modules("layers.{i}.mixture.router", ("router.proj",)),
    Rule(target="layers.{i}.mixture.scale", hf=(f"{_LAYER}router.scale",)),
    Rule(target="layers.{i}.mixture.expert_scale", hf=(f"{_LAYER}router.per_expert_scale",)),
    *(
        Rule(target=f"layers.{{i}}.mixture.experts.{name}", hf=(Stacked(f"{_LAYER}experts.{name}_proj"),))
        for name in ("gate_up", "down")
    ),
    *modules("layers.{i}.own_input.gate", ("per_layer_input_gate",)),
    *modules("layers.{i}.own_input.output", ("per_layer_projection",)),
    *modules("layers.{i}.own_input.norm", ("post_per_layer_input_norm",)),
    Rule(target="layers.{i}.scale", hf=(f"{_LAYER}layer_scalar",)),
    *modules("own_inputs.embed", ("model.embed_tokens_per_layer",)),
    *modules("own_inputs.projection", ("model.per_layer_model_projection",)),
    *modules("own_inputs.norm", ("model.per_layer_projection_norm",)),
    *modules("norm", ("model.norm",)),
)
