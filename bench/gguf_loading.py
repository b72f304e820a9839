"""Seconds until a GGUF file's weights are in memory, and the peak they took, beside llama.cpp's in the same run.

``python -m bench.gguf_loading GGUF --peer PYTHON``: an interpreter that has llama-cpp-python. Each load is a process
of its own, taking turns; nothing is kept between them, and the file is in the system's cache.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from bench.machine import ROOT, save, versions

START = """
import json, sys, time
def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024
def report(started, before):
    seconds, rise = time.perf_counter() - started, memory("VmHWM") - before
    print(json.dumps({"seconds": seconds, "peak_rise_mb": rise / 1e6} | more))
more = {}
"""
OURS = """
import jax
from cvllm_jax import EngineConfig, QuantizationConfig
from cvllm_jax.engine import loading
place = loading.place_weights
def timed(*arguments, **options):
    started, before = time.perf_counter(), memory("VmRSS")
    weights = place(*arguments, **options)
    jax.block_until_ready(weights.leaves)
    more["result_mb"] = sum(leaf.nbytes for leaf in weights.leaves) / 1e6
    report(started, before)
    raise SystemExit
loading.place_weights = timed
loading.load(EngineConfig(
    model_path=sys.argv[1], dtype="bf16", warmup=False, quantization=QuantizationConfig.parse(sys.argv[2])))
"""
PEER = """
from llama_cpp import Llama
started, before = time.perf_counter(), memory("VmRSS")
model = Llama(sys.argv[1], n_ctx=64, use_mmap=False, verbose=False)
report(started, before)
"""


def load(python: str, code: str, *arguments: str) -> dict[str, float]:
    environment = {"CVLLM_CACHE_LIMIT_GB": "0", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [python, "-c", START + code, *arguments], capture_output=True, text=True, env=environment, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", help="a Python with llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model = str(arguments.model)
    loads = {f"cvllm-jax {name}": (sys.executable, OURS, model, name) for name in ("none", "int8", "int4")}
    if arguments.peer:
        loads["llama.cpp, no mmap"] = (arguments.peer, PEER, model)
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in loads}
    for _ in range(arguments.rounds):
        for name, (python, code, *rest) in loads.items():
            samples[name].append(load(python, code, *rest))
    for name, each in samples.items():
        medians = {key: statistics.median(sample[key] for sample in each) for key in each[0]}
        print(f"{name:20} " + "  ".join(f"{key} {value:.1f}" for key, value in medians.items()))
    record = {"model": arguments.model.name, "versions": versions(["jax", "gguf", "numpy"]), "results": samples}
    print(f"written to {save("gguf-loading", record).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
