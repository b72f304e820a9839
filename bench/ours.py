"""Worker: this engine through its public API. ``python -m bench.ours MODEL DTYPE``."""

import asyncio
import sys
import time
from typing import Any

from bench.machine import versions
from bench.worker import Measure, work
from cvllm_jax import EngineConfig, InferenceEngine
from cvllm_jax.benchmarks.in_process import Case, run_case


def start() -> tuple[Measure, dict[str, Any]]:
    model, dtype = sys.argv[1:]
    config = EngineConfig(model_path=model, dtype=dtype, enable_prefix_caching=False)
    began = time.perf_counter()
    engine = InferenceEngine.new_sync(config)
    facts = {
        "versions": versions(["jax", "flax", "numpy"]),
        "dtype": engine.model_info().dtype,
        "seconds_to_ready": round(time.perf_counter() - began, 2),
    }

    def measure(job: dict[str, Any]) -> tuple[int, float]:
        return asyncio.run(run_case(engine, Case(**job)))

    return measure, facts


if __name__ == "__main__":
    work(start)
