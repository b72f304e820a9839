"""Tensor names of BERT."""

from __future__ import annotations

from cvllm_jax.checkpoints.mappings.rules import GgufArchitecture, Rule

__all__ = ["GGUF", "RULES"]

GGUF = GgufArchitecture(
    name="bert",
    architecture="BertModel",
    causal=False,
    constants={"model_type": "bert", "hidden_act": "gelu"},
    keys={"pooling_type": "pooling_type"},
    rows={"type_vocab_size": "token_types.weight"},
    norm_eps="layer_norm_eps",
)


def _pair(target: str, hf: tuple[str, ...], gguf: tuple[str, ...]) -> tuple[Rule, Rule]:
    """The weight and the bias of one target, from names of modules."""
    in_layer = target.startswith("layers.{i}.")
    before, block = ("encoder.layer.{i}.", "blk.{i}.") if in_layer else ("embeddings.", "")
    weight, bias = (
        Rule(
            target=target + suffix,
            hf=tuple(f"{before}{module}.{kind}" for module in hf),
            gguf=tuple(f"{block}{module}.{kind}" for module in gguf),
        )
        for kind, suffix in (("weight", ""), ("bias", "_bias"))
    )
    return weight, bias


RULES = (
    Rule(target="words", hf=("embeddings.word_embeddings.weight",), gguf=("token_embd.weight",)),
    Rule(target="positions", hf=("embeddings.position_embeddings.weight",), gguf=("position_embd.weight",)),
    Rule(target="types", hf=("embeddings.token_type_embeddings.weight",), gguf=("token_types.weight",)),
    *_pair("norm", ("LayerNorm",), ("token_embd_norm",)),
    *_pair(
        "layers.{i}.attention.qkv",
        tuple(f"attention.self.{name}" for name in ("query", "key", "value")),
        ("attn_q", "attn_k", "attn_v"),
    ),
    *_pair("layers.{i}.attention.output", ("attention.output.dense",), ("attn_output",)),
    *_pair("layers.{i}.attention_norm", ("attention.output.LayerNorm",), ("attn_output_norm",)),
    *_pair("layers.{i}.up", ("intermediate.dense",), ("ffn_up",)),
    *_pair("layers.{i}.down", ("output.dense",), ("ffn_down",)),
    *_pair("layers.{i}.mlp_norm", ("output.LayerNorm",), ("layer_output_norm",)),
    # the pooler is for classifiers; the position ids count from 0
    Rule(target=None, hf=("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")),
)
