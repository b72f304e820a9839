"""Ours, in its variants, and the peers: how each is started, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args
from urllib.error import URLError
from urllib.request import urlopen

from bench import peers
from bench.machine import ROOT
from bench.worker import Worker
from cvllm_jax.config import KernelSet

__all__ = ["LLAMA_SERVER", "OURS", "VARIANTS", "Server", "Variant", "serving", "start_workers"]

OURS = "cvllm-jax"
LLAMA_SERVER = "llama.cpp's server"
LOGS = ROOT / "build" / "bench"
#: Seconds that a server may take until it is ready: the first start compiles.
START_LIMIT = 600.0


@dataclass(frozen=True, slots=True)
class Variant:
    """A column of ours: the engine with some of EngineConfig's options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    serves: bool = True
    """Whether it is measured as a server, too."""

    def arguments(self) -> list[str]:
        """The options as ``cvllm-jax serve`` has them."""
        return [part for name, value in self.options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


#: The first is what the goals are about: what ``pip install`` gives, and no speculation.
VARIANTS = (
    Variant(OURS, {"kernels": "xla"}),
    # 16 chats leave drafts no rows
    Variant(f"{OURS} + speculation", {"kernels": "xla", "num_speculative_tokens": 4}, serves=False),
    *([Variant(f"{OURS} + native kernel", {"kernels": "native"})] if "native" in get_args(KernelSet) else []),
)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready, at ``url``."""

    name: str
    url: str
    pid: int


def start_workers(model: Path, threads: int) -> dict[str, Worker]:
    """Every variant and every peer that is installed, with the model loaded."""
    ours = {variant.name: ([sys.executable, "-m", "bench.ours", str(model), json.dumps(variant.options)], {})
            for variant in VARIANTS}  # fmt: skip
    others = {
        peer.name: ([*peer.command, str(model), str(threads)], peer.environment) for peer in peers.in_process()
    }
    workers: dict[str, Worker] = {}
    try:
        for name, (command, environment) in (ours | others).items():
            with _log(name) as log:
                workers[name] = Worker(command, ROOT, environment=environment, log=log)
        for name, worker in workers.items():  # they load side by side: most of it is compiling, on one core each
            print(f"  {name} is loaded", flush=bool(worker.facts))
    except BaseException:
        for worker in workers.values():
            worker.close()
        raise
    return workers


@contextmanager
def serving(model: Path, threads: int, slots: int, context: int) -> Iterator[list[Server]]:
    """A server of every variant and llama.cpp's, side by side, until the block ends."""
    commands: dict[str, tuple[list[str], dict[str, str], int]] = {}
    for variant in VARIANTS:
        if not variant.serves:
            continue
        port = _free_port()
        serve = [sys.executable, "-m", "cvllm_jax", "serve", str(model), "--port", str(port), "--store", ":memory:"]
        commands[variant.name] = ([*serve, "--max-batch-size", str(slots), *variant.arguments()], {}, port)
    port = _free_port()
    if command := peers.server_command(model, port, threads=threads, slots=slots, context=context):
        commands[LLAMA_SERVER] = (command, peers.PINNED, port)
    started: list[subprocess.Popen[bytes]] = []
    try:
        servers = []
        for name, (command, environment, port) in commands.items():
            print(f"  starting {name}", flush=True)
            with _log(f"{name} serving") as log:
                process = subprocess.Popen(
                    command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | environment
                )
            started.append(process)
            _wait(name, process, port)
            servers.append(Server(name, f"http://127.0.0.1:{port}/v1", process.pid))
        yield servers
    finally:
        for process in started:
            process.send_signal(signal.SIGINT)
        for process in started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with status {process.returncode}; its words are in {LOGS}")
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                # our server serves with few steps at first, and says so
                if answer.status == 200 and b"warming_up" not in answer.read():
                    return
        except (URLError, TimeoutError, ConnectionError):
            pass  # not yet
        time.sleep(0.2)
    raise RuntimeError(f"{name} was not ready after {START_LIMIT:.0f} s; its words are in {LOGS}")


def _log(name: str) -> Any:
    LOGS.mkdir(parents=True, exist_ok=True)
    return (LOGS / f"{''.join(c if c.isalnum() else '-' for c in name)}.log").open("wb")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
