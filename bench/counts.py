"""What a step costs in counts, not in seconds: the same on a busy machine as on a quiet one.

``python -m bench.counts`` prints them beside their limits; ``--write`` makes what it finds the new limits, in
bench/counts.json, which tests/bench/test_counts.py holds every change to. The model is tiny, and compiled for this CPU.

- flops, bytes_accessed, temp_bytes: of the compiled programs for 8 sequences and for a prompt, as XLA counts them.
- dispatches, transfers: compiled programs that are called, and arrays that are sent to the device, in a decode step.
- python_calls: functions of Python that a decode step calls, 8 sequences.
- kept_blocks: objects that a decode step leaves behind. peak_bytes: what it has in memory at most besides.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from bench.machine import ROOT, versions
from cvllm_jax import EngineConfig, GenerationParams, InferenceEngine, InferenceRequest, QuantizationConfig

LIMITS = ROOT / "bench" / "counts.json"
MODEL = ROOT / "tests" / "golden" / "llama" / "llama_gqa_tied"
CASES: dict[str, dict[str, Any]] = {
    "f32": {"dtype": "f32"},
    "int8": {"dtype": "bf16", "quantization": QuantizationConfig(method="int8")},
}
#: By how much a count may be above its limit: versions of Python and XLA, and CPUs, differ a little.
TOLERANCE = {
    "flops": 0.05, "bytes_accessed": 0.1, "temp_bytes": 0.25, "dispatches": 0.0, "transfers": 0.0, "python_calls": 0.1,
    "kept_blocks": 0.5, "peak_bytes": 0.5,
}  # fmt: skip
SEQUENCES, STEPS = 8, 24

Counts = dict[str, dict[str, float]]


def count(**options: Any) -> Counts:
    """Counts by program, and of a decode step on the host."""
    config = EngineConfig(
        model_path=str(MODEL), device="cpu", kernels="xla", max_batch_size=SEQUENCES, max_sequence_length=256,
        prefill_chunk_size=128, warmup=False, **options,
    )  # fmt: skip
    with InferenceEngine.new_sync(config) as engine:
        steps = engine.runner.steps
        form = steps.settings.steps.decode_forms[0]
        return {
            f"decode {SEQUENCES}": program_counts(steps.decode(steps.decode_layouts[-1], form, 1)),
            "prefill 128": program_counts(steps.prefill(steps.prefill_layouts[-1])),
            "decode step": step_counts(engine),
        }


def program_counts(program: Any) -> dict[str, float]:
    cost = program.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return {
        "flops": cost["flops"], "bytes_accessed": cost["bytes accessed"],
        "temp_bytes": program.memory_analysis().temp_size_in_bytes,
    }  # fmt: skip


def step_counts(engine: InferenceEngine) -> dict[str, float]:
    """Of a step that decodes 8 sequences and nothing else; medians."""
    params = GenerationParams(max_tokens=5 * STEPS, temperature=0.0, ignore_eos=True)
    for index in range(SEQUENCES):
        engine.add_request(InferenceRequest(prompt=[index + 1] * 8, params=params))
    for _ in range(STEPS // 2):  # all are past their prompts then, and what is cached is cached
        engine.step()
    with counted_calls(engine) as calls:
        for _ in range(STEPS):
            engine.step()
    found = {name: number / STEPS for name, number in calls.items()}
    functions = [python_calls(engine.step) for _ in range(STEPS)]
    gc.collect()
    blocks = sys.getallocatedblocks()
    for _ in range(STEPS):
        engine.step()
    gc.collect()
    kept = sys.getallocatedblocks() - blocks
    peaks = []
    tracemalloc.start()
    for _ in range(STEPS):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        engine.step()
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    return found | {
        "python_calls": statistics.median(functions), "kept_blocks": max(0.0, round(kept / STEPS, 2)),
        "peak_bytes": statistics.median(peaks),
    }  # fmt: skip


@contextmanager
def counted_calls(engine: InferenceEngine) -> Iterator[dict[str, int]]:
    """Programs that the runner calls and arrays that it sends within the block."""
    calls = {"dispatches": 0, "transfers": 0}

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **options)

        return run

    get, send = engine.runner.programs.get, jax.device_put
    engine.runner.programs.get = lambda *arguments: counting("dispatches", get(*arguments))  # type: ignore[method-assign]
    jax.device_put = counting("transfers", send)
    try:
        yield calls
    finally:
        jax.device_put = send
        del engine.runner.programs.get  # the method of the class is back


def python_calls(function: Callable[[], Any]) -> int:
    """How many functions of Python a call enters, itself included."""
    entered = 0

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal entered
        entered += event == "call"

    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(None)
    return entered


def exceeded(found: Counts, limits: Counts) -> list[str]:
    """What is above its limit by more than its tolerance, in words."""
    return [
        f"{place}: {name} is {value:.6g}, and the limit is {limits[place][name]:.6g}"
        for place, counts in found.items()
        for name, value in counts.items()
        if value > limits[place][name] * (1 + TOLERANCE[name]) + 0.5
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make what is found the limits")
    arguments = parser.parse_args()
    found = {name: count(**options) for name, options in CASES.items()}
    limits = json.loads(LIMITS.read_text())["limits"] if LIMITS.exists() else {}
    for case, places in found.items():
        for place, counts in places.items():
            for name, value in counts.items():
                limit = limits.get(case, {}).get(place, {}).get(name, float("nan"))
                print(f"{case:6} {place:12} {name:16} {value:12.6g}  limit {limit:12.6g}")
    if arguments.write:
        LIMITS.write_text(json.dumps({"versions": versions(["jax", "numpy"]), "limits": found}, indent=1) + "\n")
        print(f"written to {Path(LIMITS).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
