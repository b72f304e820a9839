"""Agents on the Responses API: they run in .venv-agents (`make test-clients`)."""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

if importlib.util.find_spec("agents") is None:
    collect_ignore_glob = ["test_*.py"]  # the other clients have an environment of their own

for folder in (Path(__file__).parent, Path(__file__).parents[2] / "mcp"):
    sys.path.append(str(folder))  # importlib mode adds no folder by itself

from model_server import serve  # noqa: E402


@dataclass(frozen=True)
class Place:
    """Where the model is, and the MCP server that it may reach."""

    base_url: str
    model: str
    mcp_url: str

    @property
    def hosted(self):
        """The MCP server as a tool of a request."""
        return {"type": "mcp", "server_label": "units", "server_url": self.mcp_url, "require_approval": "never"}


@pytest.fixture(scope="session")
def mcp_origin():
    from served import serving
    from two_tools import units

    with serving(units()) as origin:
        yield origin


@pytest.fixture(scope="session")
def place(tmp_path_factory, mcp_origin):
    """A server that says what ``RULES`` tell it."""
    from two_tools import RULES

    folder = tmp_path_factory.mktemp("agents")
    path = folder / "script.json"
    path.write_text(json.dumps(RULES), encoding="utf-8")
    sizes = ("--max-sequence-length", "8192", "--dtype", "f32", "--prefill-chunk-size", "64", "--debug")
    access = ("--mcp-allow", mcp_origin.removeprefix("http://"), "--store", str(folder / "store.sqlite"))
    with serve(f"scripted:{path}", *sizes, *access) as served:
        yield Place(served.base_url, served.model, f"{mcp_origin}/mcp")
