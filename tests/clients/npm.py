"""Packages from npm in folders of their own under build; tests are skipped where there is no node or no registry."""

import shutil
import subprocess

import pytest
from model_server import ROOT


def installed(name, manifest):
    """The folder build/``name`` with what ``manifest``, the text of a package.json, asks for."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node 20 or later, and npm")
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "installed.json"
    if not record.exists() or record.read_text(encoding="utf-8") != manifest:
        (folder / "package.json").write_text(manifest, encoding="utf-8")
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
        try:
            install = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180)
        except subprocess.TimeoutExpired:
            pytest.skip("npm install takes more than three minutes")
        if install.returncode != 0:
            pytest.skip(f"npm install failed: {install.stderr.strip()[-500:]}")
        record.write_text(manifest, encoding="utf-8")
    return folder
