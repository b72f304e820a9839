"""How true the logits are: our float32 against transformers' goldens, our bfloat16 against our float32.

``python -m bench.quality``, with the demo model installed. It checks the limits that the project has set
itself and exits with 1 if one is missed.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import ROOT, save, versions
from cvllm_jax import EngineConfig, GenerationParams, InferenceEngine
from cvllm_jax.checkpoints.demo import DEMO_INSTALL_COMMAND, find_demo_model
from cvllm_jax.engine.scoring import prompt_logits

GOLDEN = ROOT / "tests" / "golden"
LIMITS = {"demo model": 2e-3, "tiny models": 1e-4, "kl": 3e-3}


def open_engine(model: Path, dtype: str) -> InferenceEngine:
    # Not warmed up: of many small engines, each compiles only the steps it needs.
    return InferenceEngine.new_sync(EngineConfig(model_path=str(model), dtype=dtype, warmup=False))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[..., V] in float64, so that the sums themselves add no error."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def greedy(engine: InferenceEngine, prompt: list[int], new_tokens: int) -> np.ndarray:
    params = GenerationParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    return np.array(engine.generate_sync(prompt, params).tokens)


def greedy_agrees(tokens: np.ndarray, expected: np.ndarray, margins: np.ndarray, difference: float) -> bool:
    """Equal up to the first step, if any, whose margin is within the difference; later steps may differ."""
    close = np.flatnonzero(margins <= difference)
    end = close[0] if close.size else len(expected)
    return bool((tokens[:end] == expected[:end]).all())


def against_goldens(
    engine: InferenceEngine, golden: Mapping[str, np.ndarray], limit: float
) -> dict[str, Any]:
    """Largest difference of any logit, and whether greedy tokens agree, over one golden file's prompts."""
    difference, agrees = 0.0, True
    for key in (name.removeprefix("prompt_") for name in golden if name.startswith("prompt_")):
        prompt = golden[f"prompt_{key}"].tolist()
        logits, expected = prompt_logits(engine, prompt), golden[f"logits_{key}"]
        errors = logits[-1] - expected if expected.ndim == 1 else logits - expected
        difference = max(difference, float(np.abs(errors).max()))
        if f"chosen_{key}" in golden:  # every position has a witness, though only the last has all its logits
            chosen = np.take_along_axis(logits[:-1], np.array(prompt)[1:, None], 1)[:, 0]
            difference = max(difference, float(np.abs(chosen - golden[f"chosen_{key}"]).max(initial=0)))
        expected_tokens = golden[f"greedy_{key}"]
        tokens = greedy(engine, prompt, len(expected_tokens))
        agrees &= greedy_agrees(tokens, expected_tokens, golden[f"margin_{key}"], limit)
    return {"max_difference": difference, "greedy_agrees": agrees}


def bf16_error(exact_engine: InferenceEngine, model: Path) -> dict[str, float]:
    """Mean KL(f32 || bf16) in nats and both perplexities, over 2,000 positions of English text."""
    reference = json.loads((GOLDEN / "kl_reference.json").read_text())
    tokens = reference["tokens"]
    inputs, targets = tokens[:-1], np.array(tokens[1:])
    exact = prompt_logits(exact_engine, inputs)
    with open_engine(model, "bf16") as engine:
        rounded = prompt_logits(engine, inputs)
    divergences, exact_scores, rounded_scores = [], [], []
    for start in range(0, len(inputs), 100):  # a vocabulary of float64 for all positions is gigabytes
        part = slice(start, start + 100)
        p, q = log_softmax(exact[part]), log_softmax(rounded[part])
        divergences.append((np.exp(p) * (p - q)).sum(-1))
        rows = np.arange(len(p))
        exact_scores.append(p[rows, targets[part]])
        rounded_scores.append(q[rows, targets[part]])
    return {
        "positions": len(inputs),
        "kl": float(np.concatenate(divergences).mean()),
        "kl_transformers": reference["kl"],
        "perplexity_f32": float(np.exp(-np.concatenate(exact_scores).mean())),
        "perplexity_bf16": float(np.exp(-np.concatenate(rounded_scores).mean())),
        "perplexity_f32_transformers": reference["perplexity_f32"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    model = find_demo_model()
    if model is None:
        sys.exit(f"the demo model is not installed; {DEMO_INSTALL_COMMAND}")

    result: dict[str, Any] = {}
    for folder in sorted((GOLDEN / "llama").iterdir()):
        with open_engine(folder, "f32") as engine, np.load(folder / "expected.npz") as golden:
            result[folder.name] = against_goldens(engine, golden, LIMITS["tiny models"])
    with open_engine(model, "f32") as engine:
        with np.load(GOLDEN / "smollm2.npz") as golden:
            result["demo model"] = against_goldens(engine, golden, LIMITS["demo model"])
        result["bf16"] = bf16_error(engine, model)

    missed = [
        name
        for name, found in result.items()
        if found.get("max_difference", 0) > LIMITS.get(name, LIMITS["tiny models"])
        or not found.get("greedy_agrees", True)
        or found.get("kl", 0) > LIMITS["kl"]
    ]
    for name, found in result.items():
        values = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
        print(f"{'MISSED' if name in missed else 'ok':7} {name:28} {values}")
    record = {"limits": LIMITS, "versions": versions(["jax", "flax", "numpy"]), "results": result}
    print(f"written to {save('quality', record).relative_to(ROOT)}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
