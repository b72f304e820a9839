"""Tensor names of Qwen3-Next. Gains are stored less 1, except for those of gated norms."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.decoder import ATTENTION_OUTPUT, ENDS, GATED_MLP, QKV, experts, modules
from cvllm_jax.checkpoints.mappings.rules import Plus, Rule

__all__ = ["RULES", "hybrid"]

_OURS, _THEIRS = "layers.{i}.attention.", "model.layers.{i}.linear_attn."


def hybrid(*further: Rule) -> tuple[Rule, ...]:
    """The rules of a family; ``further`` are those in which Qwen3-Next and Qwen3.5 differ."""
    layers = (
        *QKV,
        *ATTENTION_OUTPUT,
        *modules(_OURS + "q_norm", (Plus("self_attn.q_norm", 1),)),
        *modules(_OURS + "k_norm", (Plus("self_attn.k_norm", 1),)),
        Rule(target=_OURS + "convolution", hf=(_THEIRS + "conv1d.weight",)),
        Rule(target=_OURS + "log_rate", hf=(_THEIRS + "A_log",)),
        Rule(target=_OURS + "rate_bias", hf=(_THEIRS + "dt_bias",)),
        *modules(_OURS + "norm", ("linear_attn.norm",)),
        *modules(_OURS + "output", ("linear_attn.out_proj",)),
        *GATED_MLP,
        *modules("layers.{i}.mlp.router", ("mlp.gate",)),
        *experts("mlp.experts.{e}."),
        *modules("layers.{i}.mlp.shared.gate_up", ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")),
        *modules("layers.{i}.mlp.shared.down", ("mlp.shared_expert.down_proj",)),
        *modules("layers.{i}.mlp.shared_gate", ("mlp.shared_expert_gate",)),
        *modules("layers.{i}.attention_norm", (Plus("input_layernorm", 1),)),
        *modules("layers.{i}.mlp_norm", (Plus("post_attention_layernorm", 1),)),
        *further,
    )
    names = (source if isinstance(source, str) else source.name for rule in layers for source in rule.hf)
    # layers that predict further tokens
    predicting = tuple(name.replace("model.", "mtp.", 1) for name in names)
    around = ("fc", "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    return (
        *ENDS,
        *layers,
        *modules("norm", (Plus("model.norm", 1),)),
        Rule(target=None, hf=(*predicting, *(f"mtp.{name}.weight" for name in around))),
    )


RULES = hybrid(
    *modules(_OURS + "qkvz", ("linear_attn.in_proj_qkvz",)),
    *modules(_OURS + "ba", ("linear_attn.in_proj_ba",)),
)
