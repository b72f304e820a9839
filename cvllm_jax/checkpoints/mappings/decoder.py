"""Rules that tables of decoder-only families are made of."""

from __future__ import annotations

from dataclasses import replace

from cvllm_jax.checkpoints.mappings.rules import Interleaved, PerExpert, Rule, Source

__all__ = [
    "ATTENTION_OUTPUT", "ENDS", "GATED_MLP", "INTERLEAVED_QKV", "NORMS", "QKV", "QK_NORMS", "experts", "modules",
    "of_base_class",
]  # fmt: skip

_LAYER = "layers.{i}."


def modules(target: str, hf: tuple[Source, ...], gguf: tuple[Source, ...] = ()) -> tuple[Rule, Rule]:
    """The weight and the bias of one target.

    Arguments:
      target: path of the module. With ``layers.{i}.`` in front the sources are those of this layer too.
      hf, gguf: names of modules, without what stands before them for every module of a layer.
    """
    in_layer = target.startswith(_LAYER)

    def tensors(sources: tuple[Source, ...], layer: str, kind: str) -> tuple[Source, ...]:
        return tuple(_renamed(source, layer if in_layer else "", kind) for source in sources)

    weight, bias = (
        Rule(target=target + suffix, hf=tensors(hf, "model.layers.{i}.", kind), gguf=tensors(gguf, "blk.{i}.", kind))
        for kind, suffix in (("weight", ""), ("bias", "_bias"))
    )
    return weight, bias


def _renamed(source: Source, prefix: str, kind: str) -> Source:
    if isinstance(source, str):
        return f"{prefix}{source}.{kind}"
    return replace(source, name=f"{prefix}{source.name}.{kind}")


def experts(hf: str, *, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> tuple[Rule, ...]:
    """The matrices of a layer's experts.

    Arguments:
      hf: what stands before the names of an expert's matrices, with ``{e}`` for its number.
      gate, up, down: these names.
    """
    rules: tuple[Rule, ...] = ()
    for target, names, ggml in (("gate_up", (gate, up), ("gate", "up")), ("down", (down,), ("down",))):
        module = f"{_LAYER}mlp.experts.{target}"
        sources = tuple(PerExpert(hf + name) for name in names)
        rules += modules(module, sources, tuple(f"ffn_{name}_exps" for name in ggml))
        rules += modules(module, (), tuple(PerExpert(f"ffn_{name}.{{e}}") for name in ggml))  # llama.cpp's first form
        rules += modules(module, (), (f"ffn_{target}_exps",))  # its option to fuse them
    return rules


def of_base_class(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules, and the same for folders that were written from the class without a head, whose names are shorter."""

    def short(source: Source) -> Source:
        name = (source if isinstance(source, str) else source.name).removeprefix("model.")
        return name if isinstance(source, str) else replace(source, name=name)

    return rules + tuple(replace(rule, hf=tuple(map(short, rule.hf)), gguf=()) for rule in rules)


ENDS = (
    *modules("embed", ("model.embed_tokens",), ("token_embd",)),
    Rule(target="head", hf=("lm_head.weight",), gguf=("output.weight",), may_be_unused=True),
    # old checkpoints store the rope's inverse frequencies, which follow from the configuration
    Rule(target=None, hf=("model.layers.{i}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")),
)
"""Embedding and head."""

QKV = modules(
    _LAYER + "attention.qkv",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("attn_q", "attn_k", "attn_v"),
)

INTERLEAVED_QKV = modules(
    _LAYER + "attention.qkv",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    (
        Interleaved("attn_q", heads="num_attention_heads"),
        Interleaved("attn_k", heads="num_key_value_heads"),
        "attn_v",
    ),
)
"""For architectures whose GGUF files rotate neighbouring rows."""

ATTENTION_OUTPUT = modules(_LAYER + "attention.output", ("self_attn.o_proj",), ("attn_output",))

QK_NORMS = (
    *modules(_LAYER + "attention.q_norm", ("self_attn.q_norm",), ("attn_q_norm",)),
    *modules(_LAYER + "attention.k_norm", ("self_attn.k_norm",), ("attn_k_norm",)),
)

GATED_MLP = (
    *modules(_LAYER + "mlp.gate_up", ("mlp.gate_proj", "mlp.up_proj"), ("ffn_gate", "ffn_up")),
    *modules(_LAYER + "mlp.down", ("mlp.down_proj",), ("ffn_down",)),
)

NORMS = (
    *modules(_LAYER + "attention_norm", ("input_layernorm",), ("attn_norm",)),
    *modules(_LAYER + "mlp_norm", ("post_attention_layernorm",), ("ffn_norm",)),
    *modules("norm", ("model.norm",), ("output_norm",)),
)
"""A norm before attention, one before the feed-forward block, and one after the last layer."""
