"""What pages show is true: links lead somewhere, and blocks of code run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.append(str(Path(__file__).parent))
from fenced_blocks import fenced_blocks

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name(path):
    return str(path.relative_to(ROOT))


def headings(text):
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", without_code, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue  # another site
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name(page)} links to {link}"
        if anchor:
            assert anchor in headings(path.read_text(encoding="utf-8")), f"{name(page)} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_are_python(page):
    for block in fenced_blocks(page.read_text(encoding="utf-8")):
        if block.language == "python":
            compile(block.code, f"{name(page)}:{block.line}", "exec", flags=0x2000)  # top-level await


def runs(page):
    blocks = fenced_blocks(page.read_text(encoding="utf-8"))
    return any(block.language in ("python", "sh") and not block.not_run for block in blocks)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=name)
def test_blocks_run(page, tmp_path, demo_model_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    runner = Path(__file__).with_name("fenced_blocks.py")
    done = subprocess.run(
        [sys.executable, str(runner), str(page)], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
