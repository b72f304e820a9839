"""Tensor names of gpt-oss. Its folders have the experts' matrices in MXFP4, or plain and transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, QKV, modules
from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture, Rule, Source, Stacked

__all__ = ["GGUF", "RULES"]


def _derive(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the metadata cannot say of the rotation."""
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    return {"rope_scaling": {**scaling, "truncate": False}}


GGUF = GgufArchitecture(
    name="gpt-oss",
    architecture="GptOssForCausalLM",
    experts="num_local_experts",
    constants={"model_type": "gpt_oss"},
    derive=_derive,
)


def _experts(target: str, name: str, gguf: tuple[str, ...], *, alternating: bool) -> tuple[Rule, ...]:
    module, tensor = f"layers.{{i}}.mlp.experts.{target}", f"model.layers.{{i}}.mlp.experts.{name}"
    ggml = {kind: tuple(f"blk.{{i}}.ffn_{part}_exps.{kind}" for part in gguf) for kind in ("weight", "bias")}
    packed: Source = Stacked(tensor + "_blocks", alternating=alternating)
    plain: Source = Stacked(tensor, transposed=True, alternating=alternating)
    bias: Source = Stacked(tensor + "_bias", alternating=alternating)
    return (
        Rule(target=module, hf=(packed,), gguf=ggml["weight"]),
        Rule(target=module, hf=(plain,)),
        Rule(target=module + "_bias", hf=(bias,), gguf=ggml["bias"]),
    )


RULES = (
    *ENDS,
    *QKV,
    Rule(
        target="layers.{i}.attention.sinks",
        hf=("model.layers.{i}.self_attn.sinks",),
        gguf=("blk.{i}.attn_sinks.weight",),
    ),
    *ATTENTION_OUTPUT,
    *modules("layers.{i}.mlp.router", ("mlp.router",), ("ffn_gate_inp",)),
    *_experts("gate_up", "gate_up_proj", ("gate", "up"), alternating=True),
    *_experts("down", "down_proj", ("down",), alternating=False),
    *modules("layers.{i}.attention_norm", ("input_layernorm",), ("attn_norm",)),
    *modules("layers.{i}.mlp_norm", ("post_attention_layernorm",), ("post_attention_norm",)),
    *modules("norm", ("model.norm",), ("output_norm",)),
)
