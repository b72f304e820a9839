"""Make the tiny BERT checkpoints in bert/ and what transformers and torch make of texts with them; and, given a
folder of all-MiniLM-L6-v2, what it makes of a few.

    python make_bert.py LLAMA_CPP [MINILM_FOLDER]

``bert_mean/model.gguf``: the same model by llama.cpp's converter, which has no names for the others' options.

``bert/CASE/expected.json``: texts, their token ids, and their vectors (float32).
``minilm.npz``: texts as one JSON string, and vectors, float32 [texts, 384].
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXTS = (
    "The licence grants you rights.",
    "a",
    "Each Contributor hereby grants, subject to the terms and conditions of this License, a perpetual copyright.",
    "Ünïcode, 漢字 and 👋 are lower-cased, stripped or unknown!",
)
MINILM_TEXTS = (
    "How do I reset my password?",
    "I forgot my login credentials, what can I do?",
    "The capital of France is Paris.",
    "x",
    "Ünïcode, 漢字 and 👋 in one sentence.",
    " ".join(["A longer paragraph repeats itself so that padding and the longest sizes are met."] * 12),
)
BASE = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "pad_token_id": 0,
}
# configuration, pooling mode, whether vectors are normalised, the longest text
CASES = {
    "bert_mean": ({"matryoshka_dimensions": [8, 16]}, "mean_tokens", True, 48),
    "bert_cls": ({"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "num_attention_heads": 2}, "cls_token", False, 64),
    "bert_max": ({"hidden_act": "relu", "type_vocab_size": 1}, "max_tokens", True, 64),
}


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train(
        [str(ROOT / "LICENSE")],
        trainers.WordPieceTrainer(vocab_size=BASE["vocab_size"], special_tokens=list(SPECIAL), show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(16)  # as real files have it; texts must not be cut
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": token for name, token in zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL)}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **names})


def draw_weights(shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("LayerNorm.weight"):
            weights[name] = 1 + noise / 4
        elif name.endswith("bias"):
            weights[name] = noise / 4
        elif "embeddings" in name:
            weights[name] = noise
        else:
            gain = 2.0 if "query" in name or "key" in name else 1.0
            weights[name] = gain * noise / shape[1] ** 0.5
    return weights


@torch.no_grad()
def vectors(model: torch.nn.Module, tokens: list[list[int]], mode: str, normalize: bool) -> np.ndarray:
    rows = []
    for ids in tokens:  # one by one: the reference needs no padding to be wrong in
        hidden = model(torch.tensor([ids])).last_hidden_state[0]
        match mode:
            case "mean_tokens":
                row = hidden.mean(0)
            case "cls_token":
                row = hidden[0]
            case "max_tokens":
                row = hidden.max(0).values
        rows.append(row / row.norm() if normalize else row)
    return torch.stack(rows).numpy()


def token_ids(folder: Path, texts: tuple[str, ...]) -> list[list[int]]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return [list(map(int, tokenizer(text, truncation=False, padding=False).input_ids)) for text in texts]


def make(name: str, seed: int) -> None:
    change, mode, normalize, longest = CASES[name]
    folder = HERE / "bert" / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "1_Pooling").mkdir(parents=True)
    write_json(folder / "config.json", {**BASE, **change})
    blank = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    weights = draw_weights({key: value.shape for key, value in blank.state_dict().items()}, seed)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(folder)
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    package = "sentence_transformers.models"
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"{package}.{kind}"}
            for i, kind in enumerate(modules)
        ],
    )
    flags = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 32, **{f"pooling_mode_{flag}": flag == mode for flag in flags}},
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = token_ids(folder, TEXTS)
    expected = vectors(model, tokens, mode, normalize)
    write_json(
        folder / "expected.json",
        {"texts": TEXTS, "tokens": tokens, "vectors": [[float(f"{x:.8g}") for x in row] for row in expected]},
    )
    print(name, list(map(len, tokens)), f"standard deviation {expected.std():.2f}")


def write_gguf(folder: Path) -> None:
    from conversion import ModelBase, get_model_class
    from gguf import LlamaFileType

    converter = get_model_class("BertModel")
    converter.get_vocab_base_pre = lambda self, tokenizer: "bert-bge"  # known by what BERT's own vocabulary makes of it
    with torch.inference_mode():
        hparams = ModelBase.load_hparams(folder, False)
        converter(folder, LlamaFileType.ALL_F32, folder / "model.gguf", hparams=hparams).write()


def make_minilm(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = token_ids(folder, MINILM_TEXTS)
    expected = vectors(model, tokens, "mean_tokens", True)
    np.savez_compressed(HERE / "minilm.npz", texts=json.dumps(MINILM_TEXTS), vectors=expected)
    print("minilm", list(map(len, tokens)))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=None if path.name == "expected.json" else 2) + "\n")


if __name__ == "__main__":
    sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/gguf-py"]
    for seed, name in enumerate(CASES):
        make(name, seed)
    write_gguf(HERE / "bert" / "bert_mean")
    if len(sys.argv) > 2:
        make_minilm(Path(sys.argv[2]))
