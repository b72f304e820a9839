"""Draws who imports whom, from the code, where a page has the line ``<!-- import diagram -->``: a hook of mkdocs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARK = "<!-- import diagram -->"

# at the beginning of a line: what is imported in functions, or for type checkers alone, is no need at run time
_IMPORT = re.compile(r"^(?:from|import) (cvllm_jax\.\w+|pallas_kernels|server)\b", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls for each page."""
    return markdown.replace(MARK, f"```mermaid\n{diagram(needed())}\n```") if MARK in markdown else markdown


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


def diagram(units: Mapping[str, set[str]]) -> str:
    """Mermaid's text. An arrow that follows from two others is left out."""

    def below(unit: str) -> set[str]:
        return units[unit].union(*map(below, units[unit]))

    lines = ["graph TD"]
    for unit, names in units.items():
        through_others: set[str] = set().union(*map(below, names))
        lines += [f"    {unit} --> {name}" for name in sorted(names - through_others)]
    return "\n".join(lines)
