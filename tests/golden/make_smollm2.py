"""Writes tests/golden/smollm2.npz: what transformers computes with the demo model on prompts.json.

Run in the reference environment (README.md in this folder), with the demo model's GGUF file:
``python tests/golden/make_smollm2.py PATH/SmolLM2-135M-Instruct.Q4_1.gguf``.

All in float32 on the dequantised weights. For each prompt i of T tokens: ``prompt_i`` [T], its token ids;
``logits_i`` [V], those of the last position; ``logsumexp_i`` [T], of the logits of every position, and
``chosen_i`` [T-1], the logit there of the prompt's own next token; ``greedy_i`` [64], the greedy
continuation (past end tokens); ``margin_i`` [64], the distance between the two best logits at each step.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
NEW_TOKENS = 64


@torch.no_grad()
def expectations(model: torch.nn.Module, prompt: torch.Tensor) -> dict[str, np.ndarray]:
    step = model(prompt[None], use_cache=True)
    logits = step.logits[0]
    tokens, margins = [], []
    for _ in range(NEW_TOKENS):
        best = step.logits[0, -1].topk(2)
        tokens.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        step = model(best.indices[None, :1], past_key_values=step.past_key_values, use_cache=True)
    return {
        "prompt": prompt.numpy().astype(np.int32),
        "logits": logits[-1].numpy(),
        "logsumexp": logits.logsumexp(-1).numpy(),
        "chosen": logits[:-1].gather(1, prompt[1:, None])[:, 0].numpy(),
        "greedy": np.array(tokens, np.int32),
        "margin": np.array(margins, np.float32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", type=Path, help="the demo model's file")
    path = parser.parse_args().gguf
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    stored = {}
    for index, text in enumerate(json.loads((HERE / "prompts.json").read_text())):
        prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
        expected = expectations(model, prompt)
        stored |= {f"{name}_{index}": values for name, values in expected.items()}
        print(f"{index}: {len(prompt)} tokens, smallest margin {expected['margin'].min():.4f}", flush=True)
        print("   ", repr(tokenizer.decode(expected["greedy"])))
    np.savez_compressed(HERE / "smollm2.npz", **stored)


if __name__ == "__main__":
    main()
