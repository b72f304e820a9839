import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # modules that these tests share
pytest.importorskip("mcp", reason="needs the mcp extra")

from served import serving

SAMPLE_SERVER = Path(__file__).parent / "sample_server.py"


@pytest.fixture(scope="session")
def sample_urls():
    """The sample server's URLs, by what it speaks there."""
    from sample_server import sample_app

    with serving(sample_app()) as origin:
        yield {"http": f"{origin}/mcp", "sse": f"{origin}/sse", "legacy": f"{origin}/legacy/mcp"}


@pytest.fixture(params=["http", "legacy", "sse", "stdio"])
def sample_config(request, sample_urls):
    """How to reach the sample server, over each transport and in both generations of the protocol."""
    from cvllm_jax.mcp import McpServerConfig

    if request.param == "stdio":
        return McpServerConfig(command=sys.executable, args=[str(SAMPLE_SERVER)], timeout_secs=20)
    return McpServerConfig(url=sample_urls[request.param], auth="letmein-secret", timeout_secs=20)
