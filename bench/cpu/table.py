"""Tables of a record, for the terminal and for Markdown, with ours over the faster peer's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.cpu.engines import OURS
from bench.cpu.rows import ROWS, Row

__all__ = ["best_peer", "markdown_table", "ratio", "ratio_cell", "text_table", "text_truth"]


def best_peer(row: Row, engines: Mapping[str, Sequence[float]]) -> str | None:
    """The peer with the best median; None where no peer was measured."""
    medians = {name: statistics.median(values) for name, values in engines.items() if not name.startswith(OURS)}
    if not medians:
        return None
    return (max if row.more_is_better else min)(medians, key=medians.__getitem__)


def ratio(row: Row, engines: Mapping[str, Sequence[float]], ours: str = OURS) -> float | None:
    """The median of ``ours`` over that of the best peer."""
    peer = best_peer(row, engines)
    if peer is None or ours not in engines:
        return None
    return statistics.median(engines[ours]) / statistics.median(engines[peer])


def spread(values: Sequence[float]) -> str:
    """``median (lowest to highest)``, to three digits."""
    digits = 0 if statistics.median(values) >= 100 else 1
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def plain_ratio(row: Row, engines: Mapping[str, Sequence[float]], ours: str = OURS) -> str:
    value = ratio(row, engines, ours)
    return "" if value is None else f"{value:.2f}"


def cells(
    record: Mapping[str, Any], shown: Callable[[Row, Mapping[str, Sequence[float]], str], str] = plain_ratio
) -> tuple[list[str], list[list[str]]]:
    """The heading and the lines of a record's table."""
    samples = record["samples"]
    ours = [name for name in record["engines"] if name.startswith(OURS)]
    others = [name for name in dict.fromkeys(n for row in samples.values() for n in row) if name not in ours]
    heading = ["", "at least", "aim", *(f"ratio{name.removeprefix(OURS)}" for name in ours), *ours, *others]
    lines = []
    for row in ROWS:
        if row.case not in samples:
            continue
        engines = samples[row.case]
        lines.append([
            f"{row.title}, {row.unit}", f"{row.least:g}", f"{row.aim:g}",
            *(shown(row, engines, name) for name in ours),
            *(spread(engines[name]) if name in engines else "" for name in (*ours, *others)),
        ])  # fmt: skip
    return heading, lines


def text_table(record: Mapping[str, Any]) -> str:
    heading, lines = cells(record)
    widths = [max(len(line[column]) for line in (heading, *lines)) for column in range(len(heading))]
    rows = ["  ".join(cell.rjust(width) if column else cell.ljust(width)
                      for column, (cell, width) in enumerate(zip(line, widths))).rstrip()
            for line in (heading, *lines)]  # fmt: skip
    return "\n".join(rows)


def ratio_cell(row: Row, engines: Mapping[str, Sequence[float]], ours: str = OURS) -> str:
    """The ratio in Markdown, bold where it is what is wanted at least; empty where there is none."""
    value = ratio(row, engines, ours)
    if value is None:
        return ""
    return f"**{value:.2f}**" if row.reached(value, row.least) else f"{value:.2f}"


def markdown_table(record: Mapping[str, Any]) -> str:
    heading, lines = cells(record, ratio_cell)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(heading), *lines))


def text_truth(truth: Mapping[str, Any] | None) -> str:
    """What ``bench.truth`` found last, in a line."""
    if truth is None:
        return "mean KL to float32: not measured; make bench-truth does it"
    found = ", ".join(f"{name} {value:.4f}" for name, value in truth["kl"].items())
    return f"mean KL to float32, {truth['positions']:,} positions, {truth['date']} at {truth['commit']}: {found}"
