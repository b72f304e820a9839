"""What a process takes while it is measured: memory, and energy where the machine counts it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Usage", "watch_usage"]

_RAPL = Path("/sys/class/powercap")


@dataclass(slots=True)
class Usage:
    """Filled when the block of :func:`watch_usage` ends.

    Attributes:
      memory_before, peak_memory: bytes that the process and its children have in memory; pages that they share count
        once for each. None where /proc has no such process.
      joules: what the processor packages took, everything on the machine included; None where it is not counted or
        not readable.
    """

    memory_before: int | None = None
    peak_memory: int | None = None
    joules: float | None = None


@contextmanager
def watch_usage(pid: int | None, interval: float = 0.05) -> Iterator[Usage]:
    """Watch a process and its children, sampled every ``interval`` seconds; None watches the energy alone."""
    usage = Usage()
    stop = threading.Event()
    if pid is not None:
        usage.memory_before = usage.peak_memory = _resident(pid)

    def sample() -> None:
        while not stop.wait(interval):
            now = _resident(pid) if pid is not None else None
            if now is not None:
                usage.peak_memory = max(usage.peak_memory or 0, now)

    energy = _energy()
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        stop.set()
        thread.join()
        after = _energy()
        if energy is not None and after is not None and after >= energy:  # a counter that wrapped tells nothing
            usage.joules = (after - energy) / 1e6


def _resident(pid: int) -> int | None:
    """Bytes in memory of a process and all below it."""
    total, found = 0, False
    waiting = [pid]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            status = (process / "status").read_text()
            children = [task.read_text() for task in process.glob("task/*/children")]
        except OSError:  # it ended meanwhile, or this is no Linux
            continue
        found = True
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
        waiting.extend(int(child) for text in children for child in text.split())
    return total if found else None


def _energy() -> int | None:
    """Microjoules that the processor packages have taken."""
    try:
        counters = [path / "energy_uj" for path in _RAPL.glob("intel-rapl:?")]
        return sum(int(counter.read_text()) for counter in counters) if counters else None
    except OSError:
        return None
