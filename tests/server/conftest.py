import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import wait_until_idle
from live_server import live_server
from stub_engine import StubEngine

from server.settings import ServerSettings

sys.path.append(str(Path(__file__).parents[1] / "mcp"))  # modules that tests share; importlib mode adds no folder

import responses_api


@pytest.fixture(scope="module")
def stub():
    engine = StubEngine()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def server(stub):
    with live_server(stub) as running:
        yield running


@pytest.fixture(scope="session")
def scripted_engine(make_engine, tmp_path_factory):
    """The real engine with a model that says :data:`responses_api.RULES`, for all tests of the Responses API."""
    path = tmp_path_factory.mktemp("responses") / "script.json"
    path.write_text(json.dumps(responses_api.RULES), encoding="utf-8")
    return make_engine(model_path=f"scripted:{path}", max_sequence_length=8192)


@pytest.fixture(scope="session")
def responses_server(scripted_engine):
    """Serves ``scripted_engine``; MCP servers on this machine may be named by their URL."""
    with live_server(scripted_engine, ServerSettings(mcp_allow=("127.0.0.1",))) as running:
        yield running


@pytest.fixture
def api(responses_server, scripted_engine):
    """The Responses API of ``responses_server``, which a test must leave idle."""
    yield responses_api.ResponsesApi(responses_server.url)
    wait_until_idle(scripted_engine)


@pytest.fixture(scope="session")
def mcp_urls():
    """MCP servers made with the SDK, by name: "sample", and "one" and "two" whose tools have the same names."""
    pytest.importorskip("mcp", reason="needs the mcp extra")
    import responses_mcp
    from sample_server import make_server
    from served import serving

    with ExitStack() as servers:
        made = {"sample": make_server(), "one": responses_mcp.searcher("one"), "two": responses_mcp.searcher("two")}
        yield {
            name: f"{servers.enter_context(serving(server.streamable_http_app()))}/mcp" for name, server in made.items()
        }
