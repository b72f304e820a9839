"""Leaves the text of links to files that are in the repository but not in the site: a hook of mkdocs."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """What mkdocs calls for each page."""
    return markdown if "/" in page.file.src_uri else _OUTSIDE.sub(r"\1", markdown)
