"""A GGUF file of random weights in the shape of Llama 3.2 1B, Q8_0, for measuring speed where no real file is.

``python -m bench.random_gguf`` writes it to build/bench. Its tokenizer and chat template are the demo model's; tokens
that its larger vocabulary has besides are words of their own, so that what the model says is text.
"""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np

from bench.machine import ROOT
from cvllm_jax.checkpoints.demo import find_demo_model

__all__ = ["random_llama"]

PATH = ROOT / "build" / "bench" / "llama-3.2-1b-random.Q8_0.gguf"
LAYERS, WIDTH, FFN, HEADS, KV_HEADS, HEAD, VOCABULARY, CONTEXT = 16, 2048, 8192, 32, 8, 64, 128256, 8192
#: As wide as trained weights are, so that activations neither vanish nor overflow.
SPREAD = 0.02


def random_llama() -> Path | None:
    """The file, written the first time; None without the demo model."""
    demo = find_demo_model()
    if PATH.exists() or demo is None:
        return PATH if PATH.exists() else None
    PATH.parent.mkdir(parents=True, exist_ok=True)
    part = PATH.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_name("llama-3.2-1b-random")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    _add_tokenizer(writer, gguf.GGUFReader(demo))
    _add_tensors(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, PATH)
    return PATH


def _add_tokenizer(writer: gguf.GGUFWriter, demo: gguf.GGUFReader) -> None:
    fields = {name: field for name, field in demo.fields.items() if name.startswith("tokenizer.")}
    tokens = fields.pop("tokenizer.ggml.tokens").contents()
    kinds = fields.pop("tokenizer.ggml.token_type").contents()
    fields.pop("tokenizer.ggml.scores", None)
    more = VOCABULARY - len(tokens)
    writer.add_token_list([*tokens, *(f"word{number}" for number in range(more))])
    writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * more])
    for name, field in fields.items():
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)


def _add_tensors(writer: gguf.GGUFWriter) -> None:
    rng = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        numbers = rng.standard_normal((rows, columns), np.float32) * SPREAD
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(numbers, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))

    matrix("token_embd", VOCABULARY, WIDTH)
    norm("output_norm")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        norm(f"{block}.ffn_norm")
        for name, rows, columns in (
            ("attn_q", HEADS * HEAD, WIDTH), ("attn_k", KV_HEADS * HEAD, WIDTH), ("attn_v", KV_HEADS * HEAD, WIDTH),
            ("attn_output", WIDTH, HEADS * HEAD), ("ffn_gate", FFN, WIDTH), ("ffn_up", FFN, WIDTH),
            ("ffn_down", WIDTH, FFN),
        ):  # fmt: skip
            matrix(f"{block}.{name}", rows, columns)


if __name__ == "__main__":
    print(random_llama())
