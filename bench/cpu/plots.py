"""A record as a picture: a panel for each row, a bar for each engine with its lowest and highest sample."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.cpu.engines import OURS
from bench.cpu.rows import ROWS

__all__ = ["plot"]

OURS_COLOUR, PEER_COLOUR = "#1f6f8b", "#b8b8b8"


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG file.

    Raises:
      SystemExit: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("plots need matplotlib: pip install 'cvllm-jax[bench]'") from None
    rows = [row for row in ROWS if row.case in record["samples"]]
    figure = Figure(figsize=(12, 2.6 * -(-len(rows) // 3)), layout="constrained")
    for place, row in enumerate(rows):
        engines = record["samples"][row.case]
        axes = figure.add_subplot(-(-len(rows) // 3), 3, place + 1)
        medians = [statistics.median(values) for values in engines.values()]
        below = [middle - min(values) for middle, values in zip(medians, engines.values())]
        above = [max(values) - middle for middle, values in zip(medians, engines.values())]
        colours = [OURS_COLOUR if name.startswith(OURS) else PEER_COLOUR for name in engines]
        axes.barh(list(engines), medians, xerr=[below, above], color=colours, height=0.6, ecolor="#404040", capsize=3)
        axes.invert_yaxis()
        better = "more" if row.more_is_better else "less"
        axes.set_title(f"{textwrap.fill(row.title, 38)}\n{row.unit}, {better} is better", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
