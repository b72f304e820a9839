"""Writes tests/golden/llama/: tiny random checkpoints of the Llama family and what transformers computes.

Run in the reference environment (README.md in this folder): ``python tests/golden/make_llama.py``.

Each case is a Hugging Face folder with ``expected.npz`` beside the weights. For every prompt length n it
holds ``prompt_n`` [n]; ``logits_n`` [n, V] of a float32 forward pass over the stored weights; ``greedy_n``
[16], the greedy continuation; ``margin_n`` [16], the distance between the two best logits at each step.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LENGTHS = (1, 16, 17, 48)
NEW_TOKENS = 16
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Case:
    config: dict[str, Any]
    """What differs from BASE. Written as it is, in the spellings that real folders have, old and new."""
    stored_as: torch.dtype = torch.bfloat16
    shards: int = 1
    with_chat: bool = False


BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 192,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CASES = {
    "llama_gqa_tied": Case(
        config={"tie_word_embeddings": True, "vocab_size": 288, "max_position_embeddings": 2048},
        with_chat=True,
    ),
    "llama_mha_untied": Case(
        config={
            "num_key_value_heads": None,
            "rms_norm_eps": 1e-6,
            "vocab_size": 128,
            "intermediate_size": 48,
        },
        stored_as=torch.float32,
        shards=2,
    ),
    "llama_bias": Case(
        config={"attention_bias": True, "mlp_bias": True, "rope_theta": 500000.0}, stored_as=torch.float16
    ),
    "llama_head_dim": Case(config={"head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama3_rope_scaling": Case(
        config={
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 24,
            },
        }
    ),
    "llama_linear_rope_scaling": Case(config={"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama_yarn_rope_scaling": Case(
        config={
            "rope_theta": None,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 16.0,
                "original_max_position_embeddings": 32,
            },
        }
    ),
    "mistral_window": Case(
        config={
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "sliding_window": 16,
            "head_dim": 12,
        }
    ),
}


def draw_weights(shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    """Random weights that make a lively model: logits a few units apart, attention far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name == "model.norm.weight":
            weights[name] = 2 + noise / 2
        elif name.endswith("norm.weight"):
            weights[name] = 1 + noise / 4
        elif name.endswith(".bias"):
            weights[name] = noise / 2
        elif "embed_tokens" in name or "lm_head" in name:
            weights[name] = noise / 4  # small, so that a tied model does more than repeat its last token
        else:
            gain = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
            weights[name] = gain * noise / shape[1] ** 0.5
    return weights


def save_weights(folder: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(weights)
    place = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        chosen = names[shard::shards]
        save_file({name: weights[name] for name in chosen}, folder / file, metadata={"format": "pt"})
        place |= dict.fromkeys(chosen, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": place}
    )


def save_tokenizer(folder: Path, vocabulary: int) -> None:
    """A byte-level BPE with ChatML's control tokens. Small vocabularies know ASCII only."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary < len(alphabet) + len(SPECIAL):
        alphabet = [symbol for symbol in alphabet if symbol.isascii()]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train([str(ROOT / "LICENSE")], trainer)
    assert tokenizer.get_vocab_size() == vocabulary
    tokenizer.save(str(folder / "tokenizer.json"))


def save_chat_settings(folder: Path) -> None:
    end_of_text, start, end = SPECIAL
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": start,
            "eos_token": end,
            "pad_token": end,
            "unk_token": end_of_text,
            "add_bos_token": False,
            "chat_template": CHATML,
        },
    )
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 50}
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, 0], **sampling})


@torch.no_grad()
def expectations(model: torch.nn.Module, vocabulary: int, seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    expected = {}
    for length in LENGTHS:
        prompt = draw.integers(len(SPECIAL), vocabulary, length)
        logits = model(torch.tensor(prompt)[None]).logits[0]
        tokens = list(map(int, prompt))
        margins = []
        for _ in range(NEW_TOKENS):  # whole forward passes: the reference needs no cache to be wrong in
            best = model(torch.tensor(tokens)[None]).logits[0, -1].topk(2)
            tokens.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
        expected |= {
            f"prompt_{length}": prompt.astype(np.int32),
            f"logits_{length}": logits.numpy(),
            f"greedy_{length}": np.array(tokens[length:], np.int32),
            f"margin_{length}": np.array(margins, np.float32),
        }
    return expected


def make(name: str, case: Case, seed: int) -> None:
    folder = HERE / "llama" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dtype = str(case.stored_as).removeprefix("torch.")
    config = {key: value for key, value in {**BASE, **case.config}.items() if value is not None}
    write_json(folder / "config.json", {**config, "torch_dtype": dtype})

    blank = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes = {key: value.shape for key, value in blank.state_dict().items()}
    if config["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    weights = {key: value.to(case.stored_as) for key, value in draw_weights(shapes, seed).items()}
    save_weights(folder, weights, case.shards)
    save_tokenizer(folder, config["vocab_size"])
    if case.with_chat:
        save_chat_settings(folder)

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    expected = expectations(model.eval(), config["vocab_size"], seed)
    np.savez_compressed(folder / "expected.npz", **expected)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size // 1024} KiB, logits' standard deviation {expected['logits_48'].std():.2f}")


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    for seed, (name, case) in enumerate(CASES.items()):
        make(name, case, seed)
