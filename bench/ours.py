"""Worker: this engine through its public API. ``python -m bench.ours MODEL OPTIONS``, of EngineConfig as JSON."""

import asyncio
import json
import sys
from typing import Any

from bench.machine import versions
from bench.worker import Measure, work
from cvllm_jax import EngineConfig, InferenceEngine
from cvllm_jax.benchmarks.in_process import Case, run_case


def start() -> tuple[Measure, dict[str, Any]]:
    model, options = sys.argv[1:]
    # a prompt that is there again in the next round must be read again
    config = EngineConfig(model_path=model, **json.loads(options), enable_prefix_caching=False)
    engine = InferenceEngine.new_sync(config)
    engine.wait_until_warm()
    facts = {
        "versions": versions(["jax", "flax", "numpy"]),
        "dtype": engine.model_info().dtype,
        "quantization": engine.model_info().quantization,
    }

    def measure(job: dict[str, Any]) -> tuple[int, float, list[list[int]]]:
        return asyncio.run(run_case(engine, Case(**job)))

    return measure, facts


if __name__ == "__main__":
    work(start)
