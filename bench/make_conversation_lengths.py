"""Makes conversation_lengths.json: ``python -m bench.make_conversation_lengths``."""

import json
import math
from pathlib import Path

import numpy as np

REQUESTS = 1000
#: Mean, spread of the logarithm, and the longest that is kept.
PROMPT, OUTPUT = (161, 1.25, 1024), (338, 0.85, 1024)

ABOUT = (
    "Lengths of made-up conversations in tokens, drawn from log-normal distributions that were cut at 1,024 and "
    "scaled to means of 161 (prompt) and 338 (output), the averages that Kwon et al. (arXiv 2309.06180, figure 11) "
    "state for ShareGPT. No length is taken from ShareGPT, and what is measured with these is no figure on ShareGPT."
)


def lengths(rng: np.random.Generator, mean: int, sigma: float, longest: int) -> list[int]:
    """So many lengths from 4 to ``longest`` that their mean, rounded, is ``mean``."""
    draws = rng.standard_normal(REQUESTS)

    def scaled(scale: float) -> np.ndarray:
        return np.clip(np.round(scale * np.exp(sigma * draws)), 4, longest).astype(int)

    low, high = 1.0, float(longest)
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if scaled(middle).mean() < mean else (low, middle)
    return scaled(high).tolist()


def main() -> None:
    rng = np.random.default_rng(20261122)
    pairs = list(zip(lengths(rng, *PROMPT), lengths(rng, *OUTPUT), strict=True))
    path = Path(__file__).parents[1] / "cvllm_jax" / "benchmarks" / "conversation_lengths.json"
    path.write_text(json.dumps({"about": ABOUT, "pairs": pairs}) + "\n")


if __name__ == "__main__":
    main()
