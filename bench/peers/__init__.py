"""The engines that ours is compared with, as ``make bench-peers`` installs them.

Only the standard library is needed here: workers of peers run in environments of their own.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FOLDER", "NODE", "PYTHON", "SERVER", "InProcess", "failures", "in_process", "server_command"]

FOLDER = Path(__file__).parents[2] / "build" / "peers"
PYTHON = FOLDER / "python" / "bin" / "python"
SERVER = FOLDER / "llama.cpp" / "bin" / "llama-server"
NODE = FOLDER / "node"

#: OpenMP's threads stay on their cores: without it a round in five is half as fast.
PINNED = {"OMP_PROC_BIND": "true"}


@dataclass(frozen=True, slots=True)
class InProcess:
    """A peer's engine with a worker (:mod:`bench.worker`)."""

    name: str
    command: list[str]
    """The model's path and the number of threads come after it."""
    environment: dict[str, str]


def in_process() -> list[InProcess]:
    """Both builds of llama.cpp, as far as they are installed."""
    found = []
    if PYTHON.exists():
        found.append(InProcess("llama.cpp, built here", [str(PYTHON), "-m", "bench.peers.llama_cpp"], PINNED))
    if (NODE / "node_modules").exists() and (node := shutil.which("node")):
        command = [node, "bench/peers/node_llama_cpp.mjs", str(NODE)]
        found.append(InProcess("llama.cpp, prebuilt", command, PINNED))
    return found


def server_command(model: Path, port: int, *, threads: int, slots: int, context: int) -> list[str]:
    """llama.cpp's server, with ``context`` tokens for each of its ``slots``; empty where it is not installed."""
    if not SERVER.exists():
        return []
    return [
        str(SERVER), "--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--threads", str(threads),
        "--parallel", str(slots), "--cont-batching", "--ctx-size", str(slots * context), "--gpu-layers", "0",
    ]  # fmt: skip


def failures() -> dict[str, str]:
    """Peers that could not be installed, each with the reason."""
    path = FOLDER / "failed.json"
    return json.loads(path.read_text()) if path.exists() else {}
