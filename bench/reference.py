"""Worker: transformers' forward pass and cache, greedy, without the cost of its generate() loop.

``python -m bench.reference MODEL DTYPE THREADS`` in the environment that tests/golden/README.md describes.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench.machine import versions
from bench.worker import Measure, work


@torch.inference_mode()
def run(model: torch.nn.Module, job: dict[str, Any]) -> tuple[int, float, list[list[int]]]:
    prompts, new_tokens = job["prompts"], job["outputs"][0]
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    tokens = torch.tensor([[0] * pad + prompt for pad, prompt in zip(padding, prompts)])
    batch: dict[str, Any] = {}
    if any(padding):  # on the left, as generate() does; prompts of one length need no mask
        mask = torch.arange(longest)[None] >= torch.tensor(padding)[:, None]
        batch = {"attention_mask": mask.long(), "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}

    start = time.perf_counter()
    step = model(tokens, **batch, use_cache=True, logits_to_keep=1)
    best = step.logits[:, -1:].argmax(-1)
    answers = [best]
    started = time.perf_counter()
    if job["phase"] == "prefill":
        return tokens.numel(), started - start, best.tolist()
    for _ in range(new_tokens - 1):
        if batch:
            one = torch.ones(len(prompts), 1, dtype=torch.long)
            batch = {
                "attention_mask": torch.cat([batch["attention_mask"], one], 1),
                "position_ids": batch["position_ids"][:, -1:] + 1,
            }
        step = model(best, **batch, past_key_values=step.past_key_values, use_cache=True)
        best = step.logits[:, -1:].argmax(-1)
        answers.append(best)
    return len(prompts) * (new_tokens - 1), time.perf_counter() - started, torch.cat(answers, 1).tolist()


def start() -> tuple[Measure, dict[str, Any]]:
    path, dtype, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(threads)
    folder, options = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    # dequantised in float32 first: asked for bfloat16 at once, transformers may keep a GGUF file's weights packed
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    model = model.to(getattr(torch, dtype)).eval()
    return lambda job: run(model, job), {"versions": versions(["torch", "transformers"]), "dtype": dtype}


if __name__ == "__main__":
    work(start)
