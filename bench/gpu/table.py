"""The record as text."""

from collections.abc import Callable
from typing import Any

Figures = dict[str, Any]

#: Figure, heading, how it is shown; in the order of the columns.
COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("seconds", "time", lambda x: duration(x)),
    ("of_copy", "of copying", lambda x: f"{x:.0%}"),
    ("of_matmul", "of matmul", lambda x: f"{x:.0%}"),
    ("reference_seconds", "XLA", lambda x: duration(x)),
    ("error_to_reference", "error", lambda x: x if isinstance(x, str) else f"{x:.1e}"),
    ("error_to_float64", "to float64", lambda x: x if isinstance(x, str) else f"{x:.1e}"),
    ("tokens_per_second", "tokens/s", lambda x: f"{x:,.0f}"),
    ("output_tokens_per_second", "output/s", lambda x: f"{x:,.0f}"),
    ("bare_seconds", "bare step", lambda x: duration(x)),
    ("host_gap", "host gap", lambda x: f"{x:.1%}"),
    ("ready_seconds", "ready", lambda x: duration(x)),
    ("compilations", "compiled", str),
    ("host_share", "host", lambda x: f"{x:.0%}"),
)


def table(data: dict[str, Any]) -> str:
    """Ceilings, then each group with the columns that any of its cases has."""
    device = data["device"]
    lines = [f"{device.get('kind')}, JAX {data['versions'].get('jax')}, {data['date']}, commit {data['commit']}"]
    for name, unit, scale in (("copy_bytes_per_second", "TB/s", 1e12), ("matmul_flops_per_second", "TFLOP/s", 1e12)):
        values = [entry[name] / scale for entry in data["ceilings"] if name in entry]
        if values:
            lines.append(f"{name.split('_')[0]}: {min(values):.4g} to {max(values):.4g} {unit} over this file's runs")
    for group, content in data["groups"].items():
        lines += ["", group + (f" ({content['seconds']:.0f} s)" if "seconds" in content else "")]
        if "error" in content:
            lines.append(f"  {content['error']}")
        lines += _rows(content["cases"])
    return "\n".join(lines)


def _rows(cases: dict[str, Figures]) -> list[str]:
    columns = [column for column in COLUMNS if any(column[0] in figures for figures in cases.values())]
    rows = [["", *(heading for _, heading, _ in columns), ""]]
    for name, figures in cases.items():
        cells = [show(figures[key]) if key in figures else "" for key, _, show in columns]
        status = figures.get("status", "not ended")
        rows.append([name, *cells, "" if status == "ok" else f"{status} {figures.get('error', '')}".strip()[:120]])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:-1], widths[1:])), row[-1]])
        for row in rows
    ]


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
