"""Where results are kept, and what they were measured on: kind of machine, commit, date."""

import datetime
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from cvllm_jax.benchmarks.machine import machine, versions

__all__ = ["RESULTS", "ROOT", "commit", "machine", "save", "versions"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


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
