"""How true the compared paths are: mean KL to float32 of ours and of llama.cpp, with the same dequantised weights.

``make bench-truth``, or ``python -m bench.truth [--models ...]``: 2,000 positions of English text, once read as a
prompt is and once decoded, in eight sequences of 250. Some minutes; what it finds stands beside the tables of
``make bench``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import peers
from bench.cpu.engines import VARIANTS
from bench.cpu.models import MODELS
from bench.machine import ROOT, save, versions
from bench.quality import log_softmax
from cvllm_jax import EngineConfig, InferenceEngine
from cvllm_jax.checkpoints.demo import find_demo_model
from cvllm_jax.engine.pages import PageRun
from cvllm_jax.engine.plan import DecodeRow, SamplingSettings
from cvllm_jax.engine.scoring import prompt_logits
from cvllm_jax.engine.xla_options import compiler_options

SEQUENCES, LENGTH = 8, 250
POSITIONS = SEQUENCES * LENGTH
#: What the project allows the compared path.
LIMIT = 0.010
GREEDY = SamplingSettings(
    temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, frequency_penalty=0.0,
    presence_penalty=0.0, seed=(0, 0), logprobs=False, top_logprobs=False, tracks_tokens=False,
)  # fmt: skip

#: Logits after each token: of the prompt [T, V], of the sequences [B, T, V].
Logits = tuple[np.ndarray, np.ndarray]


@contextmanager
def opened(model: Path, **options: Any) -> Iterator[InferenceEngine]:
    config = EngineConfig(model_path=str(model), warmup=False, enable_prefix_caching=False, **options)
    with InferenceEngine.new_sync(config) as engine:
        yield engine


def decoded_logits(engine: InferenceEngine, sequences: list[list[int]]) -> np.ndarray:
    """[B, T, V]: after each token of sequences of one length, which go side by side through decode steps."""
    runner = engine.runner
    settings = runner.settings
    layout = next(layout for layout in runner.steps.decode_layouts if layout.rows >= len(sequences))
    pages = -(-len(sequences[0]) // settings.page_size)
    cache = runner.new_cache(
        [1 + pages * len(sequences)] * len(settings.groups), slots=settings.max_batch_size + 1
    )

    def step(leaves: Any, cache: Any, tokens: jax.Array, vector: jax.Array) -> Any:
        batches, _ = layout.unpack(vector)
        model = runner.steps.model(leaves)
        hidden, cache = model(tokens, cache, batches)
        return cache, model.logits(hidden)

    options = compiler_options(runner.mesh.devices.flat[0], "decode", enable_cuda_graph=False)
    program = jax.jit(step, donate_argnums=1, compiler_options=options)
    found = []
    for position, tokens in enumerate(zip(*sequences)):
        rows = [
            DecodeRow(
                slot=index, position=position, steps=1, forbid_end=0, sampling=GREEDY,
                tables=(PageRun(0, tuple(range(1 + index * pages, 1 + (index + 1) * pages))),) * len(settings.groups),
            )
            for index in range(len(sequences))
        ]  # fmt: skip
        padded = [*tokens, *[0] * (layout.rows - len(tokens))]
        cache, logits = program(
            runner.leaves, cache, jnp.asarray(padded, jnp.int32), jnp.asarray(layout.pack(rows))
        )
        found.append(np.asarray(logits)[: len(sequences)])
    return np.stack(found, 1)


def divergence(exact: np.ndarray, other: np.ndarray) -> float:
    """Mean KL(exact || other) in nats, over logits ``[..., V]``."""
    exact, other = (logits.reshape(-1, logits.shape[-1]) for logits in (exact, other))
    total = 0.0
    for start in range(0, len(exact), 100):  # a vocabulary of float64 for all positions is gigabytes
        p, q = log_softmax(exact[start : start + 100]), log_softmax(other[start : start + 100])
        total += float((np.exp(p) * (p - q)).sum())
    return total / len(exact)


def text() -> str:
    """What the goldens' positions are of, and after it the licence: other vocabularies may need more words."""
    tokens = json.loads((ROOT / "tests" / "golden" / "kl_reference.json").read_text())["tokens"]
    demo = find_demo_model()
    if demo is None:
        sys.exit("the text is kept as the demo model's tokens: cvllm-jax demo")
    with opened(demo, max_batch_size=1) as engine:
        return engine.tokenizer.decode(tokens) + "\n\n" + (ROOT / "LICENSE").read_text()


def llama_cpp(model: Path, threads: int, prompt: list[int], sequences: list[list[int]]) -> Logits | None:
    """What the peer's build makes of it; None where it is not installed."""
    if not peers.PYTHON.exists():
        return None
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "tokens.json").write_text(json.dumps({"prompt": prompt, "sequences": sequences}))
        command = [str(peers.PYTHON), "-m", "bench.peers.llama_cpp_logits", str(model), str(threads)]
        subprocess.run(
            [*command, str(folder / "tokens.json"), place], cwd=ROOT, check=True, stderr=subprocess.DEVNULL
        )
        return np.load(folder / "prompt.npy"), np.load(folder / "sequences.npy")


def measure(model: Path, words: str, threads: int) -> dict[str, float]:
    """Mean KL to float32 by path."""
    with opened(model, dtype="f32", kernels="xla") as engine:
        prompt = engine.tokenize(words)[:POSITIONS]
        if len(prompt) < POSITIONS:
            sys.exit(f"{model.name} makes {len(prompt)} tokens of the text, and {POSITIONS} are needed")
        sequences = [prompt[start : start + LENGTH] for start in range(0, POSITIONS, LENGTH)]
        exact = prompt_logits(engine, prompt), decoded_logits(engine, sequences)
    found: dict[str, float] = {}

    def add(name: str, logits: Logits) -> None:
        for path, of, to in zip(("prompts", "decoding"), exact, logits):
            found[f"{name}, {path}"] = divergence(of, to)
            print(f"  {name}, {path}: {found[f'{name}, {path}']:.4f}", flush=True)

    for variant in VARIANTS:
        if "num_speculative_tokens" in variant.options:
            continue  # logits are computed as without it
        with opened(model, **variant.options) as engine:
            logits = prompt_logits(engine, prompt), decoded_logits(engine, sequences)
        add(variant.name, logits)
    if (theirs := llama_cpp(model, threads, prompt, sequences)) is not None:
        add("llama.cpp", theirs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = [name for name, model in MODELS.items() if model.default]
    parser.add_argument("--models", nargs="+", choices=real, default=real, help="default: those whose files are here")
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp (default: 2)")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    words, missed = text(), False
    for name in arguments.models:
        path = MODELS[name].find()
        if path is None:
            print(f"without {name}: {MODELS[name].missing}")
            continue
        print(name, flush=True)
        kl = measure(path, words, arguments.threads)
        missed |= any(value > LIMIT for path, value in kl.items() if path.startswith(VARIANTS[0].name))
        record = {
            "command": "make bench-truth", "model": path.name, "positions": POSITIONS, "limit": LIMIT, "kl": kl,
            "versions": versions(["jax", "numpy"]),
        }  # fmt: skip
        print(f"written to {save(f'truth-{name}', record).relative_to(ROOT)}")
    if missed:
        sys.exit(f"a mean KL of ours is above {LIMIT}")


if __name__ == "__main__":
    main()
