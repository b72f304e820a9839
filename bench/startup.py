"""Seconds until an engine is ready: with an empty cache, and again with what the first start left there.

``python -m bench.startup [MODEL]``; every start is a process of its own.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cvllm_jax.checkpoints.demo import find_demo_model


def start(model: str) -> None:
    begin = time.perf_counter()
    from cvllm_jax import EngineConfig, GenerationParams, InferenceEngine

    with InferenceEngine(EngineConfig(model_path=model)) as engine:
        ready = time.perf_counter() - begin
        first = engine.generate_sync("The capital of France is", GenerationParams(max_tokens=1, temperature=0.0))
    print(f"ready after {ready:.1f} s, first token {first.stats.total_time_ms / 1000:.2f} s later", flush=True)


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else find_demo_model()
    if model is None:
        sys.exit("name a model, or install the demo model: cvllm-jax demo")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(3):
            environment = os.environ | {"CVLLM_CACHE": folder, "CVLLM_BENCH_START": str(model)}
            subprocess.run([sys.executable, str(Path(__file__))], env=environment, check=True)


if __name__ == "__main__":
    if inside := os.environ.get("CVLLM_BENCH_START"):
        start(inside)
    else:
        main()
