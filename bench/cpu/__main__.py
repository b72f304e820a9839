"""Ours beside both builds of llama.cpp on this machine's CPU, in one run (Linux only).

``make bench``, or ``python -m bench.cpu --help``. Every engine has a process of its own and stays loaded; within each
round they take turns. Writes a record of every sample, and from it the tables and plots in the documentation.
"""

import argparse
import os
import time

from bench import peers
from bench.cpu.documents import newest, write
from bench.cpu.models import MODELS
from bench.cpu.offline import measure_offline
from bench.cpu.serving import measure_serving
from bench.cpu.table import text_table, text_truth
from bench.machine import ROOT, save, versions


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, help="default: those whose files are here, but the random one")
    add("--threads", type=int, default=2, help="cores that every engine may use (default: 2)")
    add("--rounds", type=int, default=3, help="samples of prefill and decoding; large models: half (default: 3)")
    add("--new-tokens", type=int, default=48, help="tokens that each sequence decodes (default: 48)")
    add("--serving-rounds", type=int, default=2, help="runs of the chats, 0 for no servers; as above (default: 2)")
    add("--requests", type=int, default=32, help="chats of one run (default: 32)")
    add("--no-documents", action="store_true", help="leave the documentation as it is")
    arguments = parser.parse_args()
    if not peers.in_process():
        parser.error("no peer is installed: make bench-peers")
    for name, reason in peers.failures().items():
        print(f"without {name}: {reason}")

    # Workers and servers inherit both: each engine gets the same cores, and ours stays on the CPU where there is a GPU.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    for name in arguments.models or [name for name, model in MODELS.items() if model.default]:
        model, path = MODELS[name], MODELS[name].find()
        if path is None:
            print(f"without {name}: {model.missing}")
            continue
        print(name, flush=True)
        began = time.monotonic()
        rounds, serving_rounds = (
            -(-number // (2 if model.halved else 1)) for number in (arguments.rounds, arguments.serving_rounds)
        )
        record = {
            "command": "make bench", "title": model.title, "model": path.name, "threads": arguments.threads,
            "versions": versions(["cvllm-jax", "jax", "jaxlib", "flax", "numpy"]),
            **measure_offline(path, threads=arguments.threads, rounds=rounds, new_tokens=arguments.new_tokens),
        }  # fmt: skip
        if model.serves and serving_rounds:
            served = measure_serving(
                path, threads=arguments.threads, rounds=serving_rounds, requests=arguments.requests
            )
            record["samples"] |= served.pop("samples")
            record["serving"] = served
        record["seconds"] = round(time.monotonic() - began)
        written = save(f"cpu-{name}", record)
        print(text_table(record))
        print(text_truth(newest(f"truth-{name}")))
        print(f"written to {written.relative_to(ROOT)}, after {record['seconds']} s", flush=True)
    if not arguments.no_documents:
        for changed in write():
            print(f"wrote {changed.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
