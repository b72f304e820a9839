"""Worker: this engine through its public API. ``python -m bench.ours MODEL DTYPE``."""

import asyncio
import sys
import time
from typing import Any

from bench.machine import versions
from bench.worker import Measure, work
from cvllm_jax import EngineConfig, GenerationParams, InferenceEngine


async def arrivals(engine: InferenceEngine, prompt: list[int], new_tokens: int) -> list[float]:
    """When each token of one stream reached its reader."""
    params = GenerationParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    times = []
    async for update in engine.generate_stream(prompt, params):
        if update.token is not None:
            times.append(time.perf_counter())
    assert len(times) == new_tokens
    return times


async def run(engine: InferenceEngine, job: dict[str, Any]) -> tuple[int, float]:
    start = time.perf_counter()
    streams = await asyncio.gather(
        *(arrivals(engine, prompt, job["new_tokens"]) for prompt in job["prompts"])
    )
    started = max(times[0] for times in streams)
    if job["phase"] == "prefill":
        return sum(map(len, job["prompts"])), started - start
    later = [moment for times in streams for moment in times if moment > started]
    return len(later), max(later) - started


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
    return lambda job: asyncio.run(run(engine, job)), facts


if __name__ == "__main__":
    work(start)
