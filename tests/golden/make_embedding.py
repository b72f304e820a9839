"""Make the tiny checkpoints in embedding/ of decoders that give embeddings, and what sentence-transformers makes of
texts with them.

    python make_embedding.py LLAMA_CPP

``embedding/CASE/expected.json``: texts, and for some names of prompts (null for none) their token ids with the prompt
and their vectors (float32). ``model.gguf`` holds the same weights by llama.cpp's converter, without a tokenizer.
"""

import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from make_bert import HERE, TEXTS, save_tokenizer, write_json
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, AutoModel

PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}
IDENTITY, TANH = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"
BASE = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 2**-10,
    "rope_theta": 1024.0,
    "torch_dtype": "float32",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    config: dict[str, Any]
    mode: str
    frame: str
    """What the tokenizer puts around a text."""
    prefix: str = ""
    """What stands before the names of tensors."""
    dense: tuple[tuple[int, bool, str], ...] = ()
    """Numbers that come out, whether there is a bias, and the activation."""
    normalize: bool = True
    default_prompt: str | None = None
    gguf: bool = False
    prompts: dict[str, str] = field(default_factory=lambda: PROMPTS)


CASES = {
    "qwen3": Case(
        config={"architectures": ["Qwen3Model"], "model_type": "qwen3", "tie_word_embeddings": True},
        mode="lasttoken",
        frame="$A [SEP]",
        gguf=True,
    ),
    "qwen3_options": Case(
        config={
            "architectures": ["Qwen3ForCausalLM"],  # as the real ones
            "model_type": "qwen3",
            "is_causal": False,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        mode="mean_tokens",
        frame="[CLS] $A [SEP]",
        dense=((24, True, TANH),),
        normalize=False,
        default_prompt="document",
    ),
    "gemma3_causal": Case(
        config={
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "sliding_window": 8,
            "query_pre_attn_scalar": 5,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        mode="cls_token",
        frame="$A [SEP] [CLS]",
        prefix="model.",
        prompts={},
    ),
    "gemma3": Case(
        config={
            "architectures": ["Gemma3TextModel"],
            "model_type": "gemma3_text",
            "num_hidden_layers": 6,
            "hidden_size": 16,
            "head_dim": 8,
            "use_bidirectional_attention": True,
            "sliding_window": 8,
            "query_pre_attn_scalar": 8,
            "rope_theta": 4096.0,
            "rope_local_base_freq": 64.0,
        },
        mode="mean_tokens",
        frame="[CLS] $A [SEP]",
        dense=((24, False, IDENTITY), (16, False, IDENTITY)),
        gguf=True,
    ),
}


def draw_weights(
    shapes: dict[str, torch.Size], seed: int, prefix: str, gains_less_one: bool
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            noise = noise / 4 + (0 if gains_less_one else 1)
        elif name.endswith("bias"):
            noise = noise / 2
        elif "embed_tokens" not in name:
            noise = noise * (1.5 if "q_proj" in name or "k_proj" in name else 1.0) / shape[-1] ** 0.5
        weights[prefix + name] = noise
    return weights


def write_modules(folder: Path, case: Case, seed: int) -> None:
    package, width = "sentence_transformers.models", case.config.get("hidden_size", BASE["hidden_size"])
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules += [("Dense", f"{2 + i}_Dense") for i in range(len(case.dense))]
    modules += [("Normalize", f"{len(modules)}_Normalize")] if case.normalize else []
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"}
            for i, (kind, path) in enumerate(modules)
        ],
    )
    (folder / "1_Pooling").mkdir()
    flags = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": width,
            **{f"pooling_mode_{flag}": flag == case.mode for flag in flags},
            "include_prompt": True,
        },
    )
    generator = torch.Generator().manual_seed(seed)
    for i, (outputs, bias, activation) in enumerate(case.dense):
        place = folder / f"{2 + i}_Dense"
        place.mkdir()
        options = {"in_features": width, "out_features": outputs, "bias": bias, "activation_function": activation}
        write_json(place / "config.json", options)
        tensors = {"linear.weight": torch.randn(outputs, width, generator=generator) / width**0.5}
        if bias:
            tensors["linear.bias"] = torch.randn(outputs, generator=generator) / 2
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        width = outputs
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": case.prompts, "default_prompt_name": case.default_prompt, "similarity_fn_name": "cosine"},
    )


def write_gguf(folder: Path) -> None:
    from conversion import ModelBase, get_model_class
    from gguf import LlamaFileType

    config = json.loads((folder / "config.json").read_text())
    converter = get_model_class(config["architectures"][0])
    converter.set_vocab = lambda self: None
    with torch.inference_mode():
        hparams = ModelBase.load_hparams(folder, False)
        converter(
            folder, LlamaFileType.ALL_F32, folder / "model.gguf", hparams=hparams,
            sentence_transformers_dense_modules=True,
        ).write()  # fmt: skip


def make(name: str, case: Case, seed: int) -> None:
    folder = HERE / "embedding" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {**BASE, **case.config})
    blank = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    shapes = {key: value.shape for key, value in blank.state_dict().items()}
    weights = draw_weights(shapes, seed, case.prefix, gains_less_one="gemma" in name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=case.frame, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"})
    write_modules(folder, case, seed)
    model = SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"dtype": torch.float32, "attn_implementation": "eager"}
    )
    expected = []
    for prompt in (None, *case.prompts):
        before = case.prompts.get(prompt or case.default_prompt, "")
        vectors = [model.encode(text, prompt_name=prompt) for text in TEXTS]  # one by one, without padding
        rows = [[float(f"{x:.8g}") for x in vector] for vector in vectors]
        tokens = [tokenizer.encode(before + text).ids for text in TEXTS]
        expected.append({"prompt_name": prompt, "tokens": tokens, "vectors": rows})
    write_json(folder / "expected.json", {"texts": TEXTS, "expected": expected})
    if case.gguf:
        write_gguf(folder)
    print(name, [len(vector) for vector in vectors], f"cosine {vectors[0] @ vectors[2]:.2f}")


if __name__ == "__main__":
    sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/gguf-py"]
    for seed, (name, case) in enumerate(CASES.items()):
        make(name, case, seed)
