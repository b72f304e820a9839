"""Tensor names of Llama 4, text, which rotates neighbouring rows."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, NORMS, experts, modules
from cvllm_jax.checkpoints.mappings.rules import Interleaved, Rule, Stacked

__all__ = ["RULES"]

_EXPERTS = "model.layers.{i}.feed_forward.experts."

RULES = (
    *ENDS,
    *modules(
        "layers.{i}.attention.qkv",
        (
            Interleaved("self_attn.q_proj", heads="num_attention_heads"),
            Interleaved("self_attn.k_proj", heads="num_key_value_heads"),
            "self_attn.v_proj",
        ),
    ),
    *ATTENTION_OUTPUT,
    *modules("layers.{i}.mlp.gate_up", ("feed_forward.gate_proj", "feed_forward.up_proj")),
    *modules("layers.{i}.mlp.down", ("feed_forward.down_proj",)),
    *modules("layers.{i}.mlp.router", ("feed_forward.router",)),
    *(
        Rule(target=f"layers.{{i}}.mlp.experts.{name}", hf=(Stacked(f"{_EXPERTS}{name}_proj", transposed=True),))
        for name in ("gate_up", "down")
    ),
    *experts("feed_forward.experts.{e}."),  # folders in few bits have them apart
    *modules(
        "layers.{i}.mlp.shared.gate_up",
        ("feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"),
    ),
    *modules("layers.{i}.mlp.shared.down", ("feed_forward.shared_expert.down_proj",)),
    *NORMS,
)
