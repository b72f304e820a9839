"""Writes the comparison into the documentation, from the newest records: ``python -m bench.cpu.documents``.

docs/performance.md gets a table and a plot for each model, README.md the demo model's ratios; both between markers, and
nothing of them is written by hand.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.cpu.engines import OURS
from bench.cpu.models import MODELS
from bench.cpu.plots import plot
from bench.cpu.rows import ROWS
from bench.cpu.table import best_peer, markdown_table, ratio_cell
from bench.machine import RESULTS, ROOT

__all__ = ["newest", "write"]

BEGIN, END = "<!-- bench.cpu -->", "<!-- end of bench.cpu -->"
IMAGES = ROOT / "docs" / "images"


def newest(kind: str) -> dict[str, Any] | None:
    """The last record of its kind; None where there is none."""
    found = sorted(RESULTS.glob(f"{kind}-[0-9][0-9][0-9][0-9]-*.json"), key=lambda path: path.name)
    return json.loads(found[-1].read_text()) if found else None


def write() -> list[Path]:
    """Both documents and the plots; gives back what was written."""
    records = {name: record for name in MODELS if (record := newest(f"cpu-{name}"))}
    sections, written = [], []
    for name, record in records.items():
        image = IMAGES / f"cpu-{name}.png"
        plot(record, image)
        sections.append(section(record, newest(f"truth-{name}"), image.relative_to(ROOT / "docs")))
        written.append(image)
    written.append(between(ROOT / "docs" / "performance.md", "\n\n".join(sections)))
    if demo := records.get(next(iter(MODELS))):
        written.append(between(ROOT / "README.md", summary(demo)))
    return written


def between(document: Path, text: str) -> Path:
    """Puts the text between the document's markers."""
    before, rest = document.read_text().split(BEGIN)
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    return document


def section(record: Mapping[str, Any], truth: Mapping[str, Any] | None, image: Path) -> str:
    """One model's part of docs/performance.md."""
    parts = [f"### {record['title']}", origin(record), markdown_table(record), f"![{record['title']}]({image})"]
    if serving := record.get("serving"):
        parts.append(serving_notes(serving))
    parts.append(agreement_notes(record["agreement"]))
    if truth:
        parts.append(truth_table(truth))
    return "\n\n".join(parts)


def origin(record: Mapping[str, Any]) -> str:
    """Where and with what a record was measured, in two sentences."""
    machine = record["machine"]
    known: dict[str, str] = {}
    for facts in (record, *record["engines"].values()):
        known |= facts["versions"]
    wanted = ("jax", "llama-cpp-python", "node-llama-cpp")
    versions = ", ".join(f"{name} {known[name]}" for name in wanted if name in known)
    return (
        f"{record['date']}, {record['threads']} cores of {machine['cpu']} ({', '.join(machine['instructions'])}), "
        f"commit {record['commit']}, {versions}; medians (lowest to highest), rounds: {count(record)}."
    )


def count(record: Mapping[str, Any]) -> int:
    return len(next(iter(record["samples"]["prefill of 512"].values())))


def serving_notes(serving: Mapping[str, Any]) -> str:
    lines = []
    for name, runs in serving["runs"].items():
        token, memory = (statistics.median(run["token"]["p50"] for run in runs), max(r["peak_memory"] for r in runs))
        between = statistics.median(run["between"]["p99"] for run in runs)
        lines.append(
            f"{name} took {token:.0f} ms for a token after the first (median), at most {between:.0f} ms between 99 % "
            f"of the pieces of text, and {memory / 1e6:.0f} MB of memory."
        )
    return f"Serving, {serving['requests']} chats a run: " + " ".join(lines)


def agreement_notes(found: Mapping[str, Mapping[str, float]]) -> str:
    shares = "; ".join(
        f"{case}: " + ", ".join(f"{name} {share:.0%}" for name, share in engines.items())
        for case, engines in found.items()
    )
    return f"So much of an answer is the same as ours, greedy, before the first token that is not: {shares}."


def truth_table(truth: Mapping[str, Any]) -> str:
    lines = ["| mean KL to float32, nats | |", "|---|---|"]
    lines += [f"| {name} | {value:.4f} |" for name, value in truth["kl"].items()]
    return (
        f"How true the compared paths are, over {truth['positions']:,} positions of English text with the same weights "
        f"({truth['date']}, commit {truth['commit']}, `make bench-truth`):\n\n" + "\n".join(lines)
    )


def summary(record: Mapping[str, Any]) -> str:
    """The README's table: one line a row, with the ratio to the faster peer."""
    ours = [name for name in record["engines"] if name.startswith(OURS)]
    heading = ["", OURS, "llama.cpp", *(f"ratio{name.removeprefix(OURS)}" for name in ours), "wanted", "aim"]
    lines = [heading, ["---"] * len(heading)]
    for row in ROWS:
        if (engines := record["samples"].get(row.case)) and (peer := best_peer(row, engines)):
            figures = (f"{statistics.median(engines[name]):.0f}" for name in (ours[0], peer))
            goals = (f"{row.least:g}", f"{row.aim:g}")
            cells = (ratio_cell(row, engines, name) for name in ours)
            lines.append([f"{row.title}, {row.unit}", *figures, *cells, *goals])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    machine = record["machine"]
    return f"{record['title']}, {record['threads']} cores of {machine['cpu']}, {record['date']}:\n\n{table}"


if __name__ == "__main__":
    for path in write():
        print(path.relative_to(ROOT))
