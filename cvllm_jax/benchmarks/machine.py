"""What something was measured on and with: the kind of machine, versions, the date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["machine", "record", "versions"]

#: Instructions that decide how fast a CPU multiplies matrices.
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")


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
        "instructions": [flag for flag in _TELLING_FLAGS if flag in flags],
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python and of packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def record() -> dict[str, Any]:
    """How every record of a measurement begins."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(("cvllm-jax", "jax", "flax", "numpy")),
    }
