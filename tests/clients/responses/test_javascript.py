"""Clients from npm: openai, @openai/agents and the AI SDK. Skipped where there is no node or no npm registry."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from model_server import ROOT

SOURCES = Path(__file__).parent / "javascript"
TESTS = sorted(path.name for path in SOURCES.glob("*.test.mjs"))


@pytest.fixture(scope="module")
def folder():
    """Where the packages are and the tests beside them: imports are looked for from there."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node 20 or later, and npm")
    folder = ROOT / "build" / "javascript-clients"
    folder.mkdir(parents=True, exist_ok=True)
    installed = folder / "installed.json"
    wanted = (SOURCES / "package.json").read_text(encoding="utf-8")
    if not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
        (folder / "package.json").write_text(wanted, encoding="utf-8")
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
        try:
            install = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180)
        except subprocess.TimeoutExpired:
            pytest.skip("npm install takes more than three minutes")
        if install.returncode != 0:
            pytest.skip(f"npm install failed: {install.stderr.strip()[-500:]}")
        installed.write_text(wanted, encoding="utf-8")
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
