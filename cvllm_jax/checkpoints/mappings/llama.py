"""Tensor names of the Llama family (Llama, SmolLM2, Yi, Mistral)."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.rules import Interleaved, Rule

__all__ = ["RULES"]

_HF = "model.layers.{i}."
_ATTENTION = _HF + "self_attn."
_MLP = _HF + "mlp."
_GGUF = "blk.{i}."


def _query_key_value(kind: str) -> Rule:
    return Rule(
        target="layers.{i}.attention.qkv" + ("_bias" if kind == "bias" else ""),
        hf=tuple(f"{_ATTENTION}{name}_proj.{kind}" for name in "qkv"),
        gguf=(
            Interleaved(f"{_GGUF}attn_q.{kind}", heads="num_attention_heads"),
            Interleaved(f"{_GGUF}attn_k.{kind}", heads="num_key_value_heads"),
            f"{_GGUF}attn_v.{kind}",
        ),
    )


def _others(kind: str) -> tuple[Rule, ...]:
    suffix = "_bias" if kind == "bias" else ""
    return (
        Rule(
            target="layers.{i}.attention.output" + suffix,
            hf=(f"{_ATTENTION}o_proj.{kind}",),
            gguf=(f"{_GGUF}attn_output.{kind}",),
        ),
        Rule(
            target="layers.{i}.mlp.gate_up" + suffix,
            hf=(f"{_MLP}gate_proj.{kind}", f"{_MLP}up_proj.{kind}"),
            gguf=(f"{_GGUF}ffn_gate.{kind}", f"{_GGUF}ffn_up.{kind}"),
        ),
        Rule(
            target="layers.{i}.mlp.down" + suffix,
            hf=(f"{_MLP}down_proj.{kind}",),
            gguf=(f"{_GGUF}ffn_down.{kind}",),
        ),
    )


RULES = (
    Rule(target="embed", hf=("model.embed_tokens.weight",), gguf=("token_embd.weight",)),
    _query_key_value("weight"),
    _query_key_value("bias"),
    *_others("weight"),
    *_others("bias"),
    Rule(
        target="layers.{i}.attention_norm",
        hf=(f"{_HF}input_layernorm.weight",),
        gguf=(f"{_GGUF}attn_norm.weight",),
    ),
    Rule(
        target="layers.{i}.mlp_norm",
        hf=(f"{_HF}post_attention_layernorm.weight",),
        gguf=(f"{_GGUF}ffn_norm.weight",),
    ),
    Rule(target="norm", hf=("model.norm.weight",), gguf=("output_norm.weight",)),
    Rule(target="head", hf=("lm_head.weight",), gguf=("output.weight",), may_be_unused=True),
    # old checkpoints store the rope's inverse frequencies, which follow from the configuration
    Rule(target=None, hf=(f"{_ATTENTION}rotary_emb.inv_freq", "model.rotary_emb.inv_freq")),
)
