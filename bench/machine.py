"""What a result was measured on and with: kind of machine, versions, commit, date."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
#: Instructions that decide how fast a CPU multiplies matrices.
TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """The kind of CPU and its size; nothing that names one machine."""
    model, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(re.findall(r"^(model name|flags)\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE))
        model = fields.get("model name", model)
        flags = set(fields.get("flags", "").split())
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "instructions": [flag for flag in TELLING_FLAGS if flag in flags],
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }


def commit() -> str:
    """The commit measured, with "+" if files of the packages or of bench differ from it; "unknown" in a bare copy."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    try:
        changed = git("status", "--porcelain", "--", "cvllm_jax", "pallas_kernels", "bench/*.py")
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def save(name: str, result: dict[str, Any]) -> Path:
    """Writes a result to bench/results/NAME-DATE-CPU.json, with what it was measured on."""
    today = datetime.date.today().isoformat()
    cpu = re.sub(r"\W+", "-", machine()["cpu"]).strip("-").lower()
    path = RESULTS / f"{name}-{today}-{cpu}.json"
    RESULTS.mkdir(exist_ok=True)
    record = {"date": today, "commit": commit(), "machine": machine(), **result}
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path
