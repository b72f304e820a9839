"""Servers and a conformance suite that others have written, from npm. `make test-mcp` installs them."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cvllm_jax import McpToolExecutionError
from cvllm_jax.mcp import McpClient, McpServerConfig, McpToolCall

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "build" / "mcp-servers" / "node_modules" / "@modelcontextprotocol"
EVERYTHING = str(PACKAGES / "server-everything" / "dist" / "index.js")
FILESYSTEM = str(PACKAGES / "server-filesystem" / "dist" / "index.js")
CONFORMANCE = str(PACKAGES / "conformance" / "dist" / "index.js")
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(NODE is None, reason="node is not installed"),
    pytest.mark.skipif(not PACKAGES.exists(), reason="npm's MCP servers are not installed: make test-mcp"),
]


@contextmanager
def everything_over_http(transport, port=None):
    """server-everything's URL."""
    if port is None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
    process = subprocess.Popen(
        [NODE, EVERYTHING, transport],
        env={**os.environ, "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(1000):
            with suppress(ConnectionError), socket.create_connection(("localhost", port)):
                break
            time.sleep(0.02)
        yield f"http://localhost:{port}/{'mcp' if transport == 'streamableHttp' else 'sse'}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["stdio", "streamableHttp", "sse"])
def everything(request):
    if request.param == "stdio":
        yield McpServerConfig(command=NODE, args=[EVERYTHING, "stdio"])
        return
    with everything_over_http(request.param) as url:
        yield McpServerConfig(url=url)


async def test_everything(everything):
    async with await McpClient.connect(everything) as client:
        assert {"echo", "get-sum", "get-tiny-image"} <= {tool.name for tool in await client.list_tools()}
        assert "7" in (await call(client, "get-sum", a=3, b=4)).text
        assert (await call(client, "echo", message="Grüße, 世界")).text.endswith("Grüße, 世界")
        assert "[image of type image/png, which is no text]" in (await call(client, "get-tiny-image")).text
        wrong = await call(client, "get-sum", a="three")
        assert wrong.is_error and wrong.text.startswith("Error: ")
        with pytest.raises(McpToolExecutionError, match="did not answer within 1 seconds"):
            await client.call_tool(
                McpToolCall(name="trigger-long-running-operation", arguments={"duration": 30, "steps": 3}),
                timeout_secs=1,
            )
        sums = await asyncio.gather(*(call(client, "get-sum", a=number, b=1) for number in range(10)))
        assert [str(number + 1) in result.text for number, result in enumerate(sums)] == [True] * 10


async def test_everything_is_found_again_when_it_restarted():
    """It answers 400 to a session that it does not know."""
    with everything_over_http("streamableHttp") as url:
        port = int(url.split(":")[2].split("/")[0])
        client = await McpClient.connect(McpServerConfig(url=url))
        assert "3" in (await call(client, "get-sum", a=1, b=2)).text
    async with client:
        with everything_over_http("streamableHttp", port):
            assert "3" in (await call(client, "get-sum", a=1, b=2)).text


async def test_filesystem(tmp_path):
    (tmp_path / "README.md").write_text("# Hello\n")
    config = McpServerConfig(command=NODE, args=[FILESYSTEM, str(tmp_path)])
    async with await McpClient.connect(config) as client:
        assert len(await client.list_tools()) >= 10
        assert "# Hello" in (await call(client, "read_file", path=str(tmp_path / "README.md"))).text
        await call(client, "write_file", path=str(tmp_path / "new.txt"), content="new")
        assert (tmp_path / "new.txt").read_text() == "new"
        outside = await call(client, "read_file", path="/etc/passwd")
        assert outside.is_error and "denied" in outside.text


async def call(client, name, **arguments):
    return await client.call_tool(McpToolCall(name=name, arguments=arguments))


@pytest.mark.parametrize("scenario", ["initialize", "tools_call", "sse-retry"])
def test_conformance(scenario, tmp_path):
    command = f"{sys.executable} {Path(__file__).parent / 'conformance_client.py'}"
    done = subprocess.run(
        [NODE, CONFORMANCE, "client", "--command", command, "--scenario", scenario, "--output-dir", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    (checks,) = tmp_path.rglob("checks.json")
    statuses = [check["status"] for check in json.loads(checks.read_text())]
    assert done.returncode == 0, done.stdout
    assert "SUCCESS" in statuses and set(statuses) <= {"SUCCESS", "INFO"}
