"""Writes tests/golden/kl_reference.json: how far transformers' bfloat16 strays from its float32.

Run in the reference environment (README.md in this folder), with the demo model's GGUF file:
``python tests/golden/make_kl_reference.py PATH/SmolLM2-135M-Instruct.Q4_1.gguf``.

The text is the first 2,001 tokens of LICENSE, as one sequence. Each position predicts the next token;
``kl`` is the mean over positions of KL(float32 || bfloat16) in nats. bench/quality.py measures the same of
our own two paths.
"""

import argparse
import json
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
POSITIONS = 2000


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", type=Path, help="the demo model's file")
    path = parser.parse_args().gguf
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    text = (HERE.parents[1] / "LICENSE").read_text()
    tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[:, : POSITIONS + 1]
    assert tokens.shape[1] == POSITIONS + 1, tokens.shape
    inputs, targets = tokens[:, :-1], tokens[0, 1:]
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    exact = model(inputs).logits[0].float().log_softmax(-1)
    rounded = model.bfloat16()(inputs).logits[0].float().log_softmax(-1)
    result = {
        "positions": POSITIONS,
        "tokens": tokens[0].tolist(),
        "perplexity_f32": cross_entropy(exact, targets).exp().item(),
        "perplexity_bf16": cross_entropy(rounded, targets).exp().item(),
        "kl": kl_div(rounded, exact, log_target=True, reduction="batchmean").item(),
    }
    (HERE / "kl_reference.json").write_text(json.dumps(result) + "\n")
    print({name: value for name, value in result.items() if name != "tokens"})


if __name__ == "__main__":
    main()
