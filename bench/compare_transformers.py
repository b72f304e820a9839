"""Tokens a second beside transformers on the CPU, in one run (Linux only).

``make bench-transformers REFERENCE_PYTHON=...``, or ``python -m bench.compare_transformers --help``. Every engine has a
process of its own and stays loaded; each round measures every workload on every engine in turn, so that a
machine that gets slower or faster meets all of them. The record keeps every sample.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.machine import ROOT, save
from bench.worker import Worker
from bench.workloads import workloads
from cvllm_jax.benchmarks.in_process import Case
from cvllm_jax.checkpoints.checkpoint import open_checkpoint
from cvllm_jax.checkpoints.demo import find_demo_model
from cvllm_jax.text import ChatTemplate, Tokenizer

Samples = dict[str, dict[str, list[float]]]


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--reference-python", required=True, help="Python of an environment with torch and transformers")
    add("--model", type=Path, default=find_demo_model(), help="GGUF file or folder (default: the demo model)")
    add("--dtypes", nargs="+", default=["auto"], help="ours to measure: auto, bf16, f32 (default: auto)")
    add("--threads", type=int, default=2, help="cores that every engine may use (default: 2)")
    add("--rounds", type=int, default=5, help="samples of each measurement (default: 5)")
    add("--new-tokens", type=int, default=64, help="tokens that each sequence decodes (default: 64)")
    arguments = parser.parse_args()
    if arguments.model is None:
        parser.error("the demo model is not installed; name one with --model")
    if not Path(arguments.reference_python).is_file():
        parser.error(f"--reference-python: there is no file {arguments.reference_python!r}")

    with open_checkpoint(str(arguments.model)) as checkpoint:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
        template = ChatTemplate.from_checkpoint(checkpoint, tokenizer)
    if template is None:
        parser.error(f"{arguments.model.name} has no chat template")
    jobs = workloads(tokenizer, template, arguments.new_tokens)

    # Workers inherit both: each engine gets the same cores, and ours stays on the CPU where there is a GPU.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    model, reference = str(arguments.model.absolute()), os.path.abspath(arguments.reference_python)
    commands = {
        f"cvllm-jax {dtype}": [sys.executable, "-m", "bench.ours", model, json.dumps({"dtype": dtype})]
        for dtype in arguments.dtypes
    } | {
        f"transformers {dtype}": [reference, "-m", "bench.reference", model, dtype, str(arguments.threads)]
        for dtype in ("float32", "bfloat16")
    }
    print("loading", ", ".join(commands), flush=True)
    workers = {name: Worker(command, ROOT) for name, command in commands.items()}
    samples = measure(workers, jobs, arguments.rounds)
    path = save(
        "transformers",
        {
            "model": arguments.model.name,
            "unit": "tokens per second",
            "threads": arguments.threads,
            "new_tokens": arguments.new_tokens,
            "prompt_tokens": {job.name: [len(prompt) for prompt in job.prompts] for job in jobs},
            "engines": {name: worker.facts for name, worker in workers.items()},
            "results": {
                job: {engine: summary(values) for engine, values in engines.items()}
                for job, engines in samples.items()
            },
        },
    )
    for worker in workers.values():
        worker.close()
    print_table(samples)
    print(f"written to {path.relative_to(ROOT)}")


def measure(workers: Mapping[str, Worker], jobs: Sequence[Case], rounds: int) -> Samples:
    """Tokens a second by workload and engine: ``rounds`` samples, after one round that is not counted."""
    samples: Samples = {job.name: {name: [] for name in workers} for job in jobs}
    for round_number in range(rounds + 1):
        for job in jobs:
            for name, worker in workers.items():
                rate, _ = worker.run(asdict(job))
                if round_number:
                    samples[job.name][name].append(round(rate, 2))
        print(f"round {round_number} of {rounds} done", flush=True)
    return samples


def summary(values: list[float]) -> dict[str, float | list[float]]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "samples": values}


def print_table(samples: Samples) -> None:
    """Medians with (lowest to highest), one line a workload."""
    engines = list(next(iter(samples.values())))
    print(f"{'tokens per second':20}" + "".join(f"{name:>30}" for name in engines))
    for job, measured in samples.items():
        cells = [f"{statistics.median(v):.1f} ({min(v):.1f} to {max(v):.1f})" for v in measured.values()]
        print(f"{job:20}" + "".join(f"{cell:>30}" for cell in cells))


if __name__ == "__main__":
    main()
