"""Draws who imports whom, from the code, where a page has the line ``<!-- import diagram -->``: a hook of mkdocs.

As SVG in the page itself, because no page asks another site for a program that draws.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARK = "<!-- import diagram -->"

#: Units of the drawing: the width of a column, and the heights of a row and of a box.
_WIDE, _HIGH, _BOX = 140, 64, 30

# at the beginning of a line: what is imported in functions, or for type checkers alone, is no need at run time
_IMPORT = re.compile(r"^(?:from|import) (cvllm_jax\.\w+|pallas_kernels|server)\b", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls for each page."""
    return markdown.replace(MARK, drawing(arrows(needed()))) if MARK in markdown else markdown


@cache
def needed() -> Mapping[str, set[str]]:
    """Each unit, a folder or file of the library, with those that its files import."""
    found: dict[str, set[str]] = {}
    for folder in ("cvllm_jax", "pallas_kernels", "server"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            unit = parts[1] if folder == "cvllm_jax" else folder
            if unit in ("__init__", "__main__"):
                continue
            names = {name.removeprefix("cvllm_jax.") for name in _IMPORT.findall(path.read_text(encoding="utf-8"))}
            found.setdefault(unit, set()).update(names - {unit})
    return found


def arrows(units: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The imports of each unit without those that follow from two others."""

    def below(unit: str) -> set[str]:
        return units[unit].union(*map(below, units[unit]))

    return {unit: names.difference(*map(below, names)) for unit, names in units.items()}


def drawing(units: Mapping[str, set[str]]) -> str:
    """SVG: rows of units, of which each is above all that it imports."""

    @cache
    def height(unit: str) -> int:
        return 1 + max(map(height, units[unit]), default=-1)

    rows: list[list[str]] = [[] for _ in range(1 + max(map(height, units)))]
    for unit in units:
        rows[-1 - height(unit)].append(unit)
    place: dict[str, tuple[float, int]] = {}
    for number, row in enumerate(rows):
        # below the middle of those that import them, so that few lines cross
        above = {unit: [place[other][0] for other in place if unit in units[other]] for unit in row}
        row.sort(key=lambda unit: sum(above[unit]) / len(above[unit]) if above[unit] else 0.0)
        for index, unit in enumerate(row):
            place[unit] = (_WIDE * (index + 0.5 + (max(map(len, rows)) - len(row)) / 2), _HIGH * number + _BOX)
    lines = "".join(
        f'<line x1="{place[unit][0]}" y1="{place[unit][1] + _BOX / 2}" x2="{place[name][0]}" '
        f'y2="{place[name][1] - _BOX / 2 - 4}" marker-end="url(#head)"/>'
        for unit, names in units.items()
        for name in sorted(names)
    )
    boxes = "".join(
        f'<rect x="{x - _WIDE / 2 + 8}" y="{y - _BOX / 2}" width="{_WIDE - 16}" height="{_BOX}" rx="4"/>'
        f'<text x="{x}" y="{y + 5}">{unit}</text>'
        for unit, (x, y) in place.items()
    )
    size = f"0 0 {_WIDE * max(map(len, rows))} {_HIGH * (len(rows) - 1) + 2 * _BOX}"
    return (
        f'<svg class="diagram" viewBox="{size}" role="img" aria-label="Who imports whom"><defs><marker id="head" '
        'viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/>'
        f"</marker></defs>{lines}{boxes}</svg>"
    )
