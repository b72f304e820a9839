"""Everything that is measured on an NVIDIA GPU, in one command: ``python -m bench.gpu``, or ``make bench-gpu``.

Parts: kernels (each against its reference, then timed), engine (whole models with random weights) and peers
(attention and models of others, in torch). Every figure is on disk as soon as it is measured.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.gpu.record import Record
from bench.gpu.supervise import Group, run_groups
from bench.gpu.table import table
from bench.machine import RESULTS, ROOT, commit, machine

PARTS = ("kernels", "engine", "peers")
LENGTHS = ROOT / "cvllm_jax" / "benchmarks" / "conversation_lengths.json"
MODELS = ("llama-3.1-8b", "llama-3.2-1b", "mistral-7b")
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "flax", "numpy")

#: What a server would run with; the longest measured prompt has 8,192 tokens.
SETTINGS: dict[str, Any] = {
    "max_batch_size": 256, "prefill_chunk_size": 2048, "max_sequence_length": 8448, "dtype": "bf16",
    "max_queue_size": 2048,
}  # fmt: skip
TINY_SETTINGS: dict[str, Any] = {
    "max_batch_size": 4, "prefill_chunk_size": 64, "max_sequence_length": 256, "dtype": "f32", "device": "cpu",
}  # fmt: skip

#: A shape for rehearsals: a second or two on a CPU.
TINY_MODEL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 512,
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip


def main() -> None:
    arguments = _arguments()
    # threads of XLA's pool that wait in the interpreter's barriers must leave some that compute
    environment = {"JAX_PLATFORMS": "cpu", "NPROC": "16"} if arguments.rehearse else {}
    found = _device(environment)
    if not arguments.rehearse and found.get("platform") != "gpu":
        what = found.get("error") or f"JAX runs on {found.get('platform')} here"
        sys.exit(f"there is no GPU to measure: {what}; does nvidia-smi work, and is jax[cuda13] installed?")
    record = Record(arguments.out or _default_path(arguments, found["kind"]), _facts(arguments, found))
    log = record.path.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    print(f"figures: {record.path}\nlog: {log}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for part in [arguments.only] if arguments.only else PARTS:
            groups = PART_GROUPS[part](arguments, Path(scratch), environment)
            groups = [group for group in groups if arguments.group in group.name]
            _run_part(part, groups, record, log, arguments, environment)
    print(table(record.data))


def _run_part(
    part: str, groups: list[Group], record: Record, log: Path, arguments: argparse.Namespace,
    environment: dict[str, str],
) -> None:  # fmt: skip
    """The ceilings, the groups within the part's time, and the ceilings again."""
    end = time.monotonic() + arguments.minutes * 60
    ceilings = Group(
        name=f"{part}: ceilings",
        command=[sys.executable, "-m", "bench.gpu.child"],
        job={"kind": "ceilings", "rehearse": arguments.rehearse},
        environment=environment,
    )
    for when in ("before", "after"):
        run_groups([ceilings], record, log, budget=60)
        figures = record.cases(ceilings.name).get("ceilings", {})
        record.add_ceilings(f"{when} {part}", {name: value for name, value in figures.items() if name != "status"})
        record.drop_group(ceilings.name)
        if when == "before":
            run_groups(groups, record, log, budget=max(0.0, end - time.monotonic() - 15))


def _kernel_groups(arguments: argparse.Namespace, scratch: Path, environment: dict[str, str]) -> list[Group]:
    from bench.gpu.operations import operations

    return [
        Group(
            name=f"kernels: {operation}",
            command=[sys.executable, "-m", "bench.gpu.child"],
            job={
                "kind": "kernels", "operation": operation, "match": arguments.match, "rehearse": arguments.rehearse,
            },
            weight=3 if operation in ("paged_attention", "quantized_matmul") else 1,  # they have most cases
            environment=environment,
        )
        for operation in operations()
    ]  # fmt: skip


def _engine_groups(arguments: argparse.Namespace, scratch: Path, environment: dict[str, str]) -> list[Group]:
    settings = {**(TINY_SETTINGS if arguments.rehearse else SETTINGS), **arguments.set}
    groups = []
    for name in [arguments.model] if arguments.model else MODELS:
        model = _tiny_folder(scratch) if arguments.rehearse else name
        for first_start in (True, False):
            groups.append(
                Group(
                    name=f"engine: {name}" + ("" if first_start else ", started again"),
                    command=[sys.executable, "-m", "bench.gpu.child"],
                    job={
                        "kind": "engine", "match": arguments.match, "rehearse": arguments.rehearse,
                        "engine": {"model": model, "settings": settings, "first_start": first_start},
                    },
                    case_seconds=300,  # loading and compiling counts as a case, too
                    # the first of several models has the goals
                    weight=(12 if name == MODELS[0] else 6) if first_start else 1.5,
                    environment=environment | {"CVLLM_CACHE": str(scratch / f"cache {name}")},
                )
            )  # fmt: skip
    return groups


def _peer_groups(arguments: argparse.Namespace, scratch: Path, environment: dict[str, str]) -> list[Group]:
    from cvllm_jax.checkpoints.dummy import SHAPES

    pairs = json.loads(LENGTHS.read_text())["pairs"]
    command = [arguments.peer_python, "-m", "bench.gpu.peers"]
    common = {"match": arguments.match, "rehearse": arguments.rehearse}
    groups = [Group(name="peers: torch SDPA", command=command, job={"kind": "sdpa", **common})]
    for name in [arguments.model] if arguments.model else MODELS:
        config = TINY_MODEL if arguments.rehearse else dict(SHAPES[name])
        job = {"kind": "transformers", "config": config, "lengths": pairs, **common}
        groups.append(Group(name=f"peers: transformers {name}", command=command, job=job, case_seconds=200, weight=4))
    return groups


PART_GROUPS = {"kernels": _kernel_groups, "engine": _engine_groups, "peers": _peer_groups}


def _tiny_folder(scratch: Path) -> str:
    folder = scratch / "tiny"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY_MODEL))
    return str(folder)


def _device(environment: dict[str, str]) -> dict[str, Any]:
    """What JAX sees, asked in another process: this one leaves the device's memory alone."""
    code = "import json, bench.gpu.child as child; print(json.dumps(child.device_facts()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]}
    facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return facts


def _facts(arguments: argparse.Namespace, device: dict[str, Any]) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "commit": arguments.commit or commit(),
        "rehearsal": arguments.rehearse,
        "device": device,
        "driver": _driver(),
        "machine": machine(),
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "settings": {**SETTINGS, **arguments.set},
    }


def _driver() -> str | None:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    return lines[0].strip() if lines else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _default_path(arguments: argparse.Namespace, device: str) -> Path:
    if arguments.rehearse:
        return ROOT / "build" / "gpu-rehearsal.json"
    kind = re.sub(r"\W+", "-", device).strip("-").lower()
    return RESULTS / f"gpu-{datetime.date.today().isoformat()}-{kind}.json"


def _setting(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--only", choices=PARTS, help="one part (default: all, one after another)")
    add("--group", default="", help="only groups whose name has this text, for example paged_attention")
    add("--match", default="", help="only cases whose name has this text")
    add("--model", choices=MODELS, help="one shape of the engine and the peers (default: all)")
    add("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="a setting of EngineConfig")
    add("--out", type=Path, metavar="FILE", help="where figures go; a file that is there is continued")
    add("--minutes", type=float, default=8.5, help="time of each part; what does not fit is left out (default: 8.5)")
    add("--peer-python", default=sys.executable, help="Python with torch and transformers (default: this one)")
    add("--commit", help="the commit measured, where there is no repository to ask")
    add("--rehearse", action="store_true", help=argparse.SUPPRESS)  # tiny shapes on a CPU: runs all this code
    arguments = parser.parse_args()
    arguments.set = dict(arguments.set)
    return arguments


if __name__ == "__main__":
    main()
