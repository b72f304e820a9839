import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import wait_until_idle

from cvllm_jax.openai import OpenAIAdapter

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "mcp"):
    sys.path.append(str(folder))  # modules that these tests share; importlib mode adds no folder by itself

from agent_script import RULES  # noqa: E402


@pytest.fixture(scope="session")
def make_scripted(make_engine, tmp_path_factory):
    """The real engine with a model that says a script. Each script is an engine: keep them few."""

    def make(script):
        path = tmp_path_factory.mktemp("script") / "script.json"
        path.write_text(json.dumps(script), encoding="utf-8")
        return make_engine(model_path=f"scripted:{path}", max_sequence_length=8192)

    return make


@pytest.fixture(scope="session")
def agent_engine(make_scripted):
    """An engine that says :data:`agent_script.RULES`."""
    return make_scripted(RULES)


@pytest.fixture
def adapter(agent_engine):
    """Over ``agent_engine``, which a test must leave idle."""
    yield OpenAIAdapter(agent_engine)
    wait_until_idle(agent_engine)


@pytest.fixture(scope="session")
def mcp_urls():
    """URLs of the servers of :mod:`mcp_servers`, by name."""
    pytest.importorskip("mcp", reason="needs the mcp extra")
    import mcp_servers
    from served import serving

    with ExitStack() as servers:
        yield {
            name: f"{servers.enter_context(serving(getattr(mcp_servers, name)().streamable_http_app()))}/mcp"
            for name in ("fs", "github", "slack", "odd")
        }
