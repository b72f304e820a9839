"""Timing work on the device: calls queued back to back, best of some rounds."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

#: Outputs of calls in flight may take so much memory.
IN_FLIGHT_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    seconds: float
    """Of one call, in the best round."""
    spread: float
    """Worst round over best round, minus 1."""
    host_share: float
    """Part of the best round that the host took to queue the calls. Near 1 the host was timed, not the device."""

    def figures(self) -> dict[str, float]:
        return {"seconds": self.seconds, "spread": round(self.spread, 4), "host_share": round(self.host_share, 3)}


def time_program(
    run: Callable[[], Any], calls: int = 1, *, warm_ups: int = 3, rounds: int = 5, round_seconds: float = 0.04,
    most: int = 200,
) -> Timing:  # fmt: skip
    """Time of one of the ``calls`` that ``run()`` queues on the device.

    The first runs compile, record the CUDA graph and warm up; then rounds of so many runs that each takes about
    ``round_seconds``, and at most ``most``.
    """
    for _ in range(warm_ups):
        out = jax.block_until_ready(run())
    begin = time.perf_counter()
    jax.block_until_ready(run())
    once = time.perf_counter() - begin
    out_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(out))
    repeats = max(1, min(most, math.ceil(round_seconds / once), IN_FLIGHT_BYTES // max(out_bytes, 1)))
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(repeats):
            out = run()
        queued = time.perf_counter()
        jax.block_until_ready(out)
        end = time.perf_counter()
        times.append(((end - begin) / repeats / calls, (queued - begin) / (end - begin)))
    best, host_share = min(times)
    return Timing(seconds=best, spread=max(times)[0] / best - 1, host_share=host_share)
