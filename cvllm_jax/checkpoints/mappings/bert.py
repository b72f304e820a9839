"""Tensor names of BERT."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.rules import Rule

__all__ = ["RULES"]

_LAYER = "encoder.layer.{i}."


def _pair(target: str, *modules: str) -> tuple[Rule, Rule]:
    """The weight and the bias of one target."""
    return (
        Rule(target=target, hf=tuple(f"{module}.weight" for module in modules)),
        Rule(target=f"{target}_bias", hf=tuple(f"{module}.bias" for module in modules)),
    )


RULES = (
    *(
        Rule(target=target, hf=(f"embeddings.{name}_embeddings.weight",))
        for target, name in (("words", "word"), ("positions", "position"), ("types", "token_type"))
    ),
    *_pair("norm", "embeddings.LayerNorm"),
    *_pair("layers.{i}.attention.qkv", *(f"{_LAYER}attention.self.{name}" for name in ("query", "key", "value"))),
    *_pair("layers.{i}.attention.output", f"{_LAYER}attention.output.dense"),
    *_pair("layers.{i}.attention_norm", f"{_LAYER}attention.output.LayerNorm"),
    *_pair("layers.{i}.up", f"{_LAYER}intermediate.dense"),
    *_pair("layers.{i}.down", f"{_LAYER}output.dense"),
    *_pair("layers.{i}.mlp_norm", f"{_LAYER}output.LayerNorm"),
    # the pooler is for classifiers; the position ids count from 0
    Rule(target=None, hf=("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")),
)
