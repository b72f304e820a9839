"""A tiny Llama as a Hugging Face folder and as a GGUF file, made by the formats' own writers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 64,
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
Tensors = dict[str, np.ndarray]


def llama_tensors(config: dict[str, Any] = CONFIG, *, seed: int = 0) -> Tensors:
    """Random float32 weights under their Hugging Face names."""
    rng = np.random.default_rng(seed)
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    N, K = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, shape in {
            "self_attn.q_proj": (N, D), "self_attn.k_proj": (K, D), "self_attn.v_proj": (K, D),
            "self_attn.o_proj": (D, N), "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F),
            "input_layernorm": (D,), "post_attention_layernorm": (D,),
        }.items():  # fmt: skip
            shapes[f"{layer}{name}.weight"] = shape
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, D)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_name(name: str) -> str:
    for theirs, ours in _GGUF_NAMES.items():
        name = name.replace(theirs, ours)
    return name.replace("model.layers", "blk")


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's conversion does to q and k of Llama models."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path,
    tensors: Tensors,
    config: dict[str, Any] = CONFIG,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    extra: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """The same model as a GGUF file, its matrices quantised to ``kind``."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    if extra is not None:
        extra(writer)
    for name, values in tensors.items():
        for projection, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if projection in name:
                values = interleave(values, config[heads])
        if values.ndim > 1 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(folder: Path, tensors: Tensors, config: dict[str, Any] = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def llama_targets(config: dict[str, Any] = CONFIG, dtype: Any = jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    N, K = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    shapes: dict[str, tuple[int, ...]] = {"embed": (V, D)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {
            f"layers.{i}.attention_norm": (D,), f"layers.{i}.attention.qkv": (N + 2 * K, D),
            f"layers.{i}.attention.output": (D, N), f"layers.{i}.mlp_norm": (D,),
            f"layers.{i}.mlp.gate_up": (2 * F, D), f"layers.{i}.mlp.down": (D, F),
        }  # fmt: skip
    shapes["norm"] = (D,)
    if not config["tie_word_embeddings"]:
        shapes["head"] = (V, D)
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32 if name.endswith("norm") else dtype)
        for name, shape in shapes.items()
    }


def expected_targets(tensors: Tensors, config: dict[str, Any] = CONFIG) -> Tensors:
    """The targets as float32, put together from Hugging Face tensors by hand."""
    made = {"embed": tensors["model.embed_tokens.weight"], "norm": tensors["model.norm.weight"]}
    for i in range(config["num_hidden_layers"]):
        layer, ours = f"model.layers.{i}.", f"layers.{i}."
        made[ours + "attention.qkv"] = np.concatenate(
            [tensors[f"{layer}self_attn.{name}_proj.weight"] for name in "qkv"]
        )
        made[ours + "mlp.gate_up"] = np.concatenate(
            [tensors[f"{layer}mlp.{name}_proj.weight"] for name in ("gate", "up")]
        )
        made[ours + "attention.output"] = tensors[layer + "self_attn.o_proj.weight"]
        made[ours + "mlp.down"] = tensors[layer + "mlp.down_proj.weight"]
        made[ours + "attention_norm"] = tensors[layer + "input_layernorm.weight"]
        made[ours + "mlp_norm"] = tensors[layer + "post_attention_layernorm.weight"]
    if "lm_head.weight" in tensors and not config["tie_word_embeddings"]:
        made["head"] = tensors["lm_head.weight"]
    return made
