"""Clients from npm: openai, @openai/agents and the AI SDK."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from npm import installed

SOURCES = Path(__file__).parent / "javascript"
TESTS = sorted(path.name for path in SOURCES.glob("*.test.mjs"))


@pytest.fixture(scope="module")
def folder():
    """Where the packages are and the tests beside them: imports are looked for from there."""
    folder = installed("javascript-clients", (SOURCES / "package.json").read_text(encoding="utf-8"))
    for source in SOURCES.glob("*.mjs"):
        shutil.copy(source, folder)
    return folder


@pytest.mark.parametrize("test", TESTS)
def test_javascript(folder, place, test):
    environment = os.environ | {"PLACE": f"{place.base_url} {place.model} {place.mcp_url}"}
    ran = subprocess.run(
        ["node", "--test", "--test-reporter=spec", test],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
