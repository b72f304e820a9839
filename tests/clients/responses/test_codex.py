"""codex, set up as docs/clients.md says, with the MCP server's tools, which codex runs itself."""

import json
import os
import re
import subprocess

import pytest
from model_server import ROOT, serve
from npm import installed
from two_tools import ANSWER, RULES

PACKAGE = json.dumps({"private": True, "dependencies": {"@openai/codex": "0.169.0"}})


@pytest.fixture(scope="module")
def codex():
    return installed("codex", PACKAGE) / "node_modules" / ".bin" / "codex"


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """A server with room for what codex sends before the first question."""
    folder = tmp_path_factory.mktemp("codex-server")
    script = folder / "script.json"
    script.write_text(json.dumps(RULES), encoding="utf-8")
    options = ("--max-sequence-length", "32768", "--dtype", "f32", "--store", str(folder / "store.sqlite"))
    with serve(f"scripted:{script}", *options) as served:
        yield served


def test_a_task_with_a_tool_of_an_mcp_server(codex, roomy, mcp_origin, tmp_path):
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    config = re.search(r"\n## codex\n.*?```toml\n(.*?)```", page, re.DOTALL)[1]
    for shown, real in (
        ("http://127.0.0.1:8000/v1", roomy.base_url),
        ("http://127.0.0.1:3001", mcp_origin),
        ('"script"', f'"{roomy.model}"'),
    ):
        assert shown in config
        config = config.replace(shown, real)
    (tmp_path / "config.toml").write_text(config, encoding="utf-8")
    (tmp_path / "empty").mkdir()
    ran = subprocess.run(
        [codex, "exec", "--skip-git-repo-check", "What are 21 degrees in Fahrenheit?"],
        cwd=tmp_path / "empty", env=os.environ | {"CODEX_HOME": str(tmp_path), "OPENAI_API_KEY": "none"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == ANSWER, ran.stderr
    assert "to_fahrenheit" in ran.stderr
