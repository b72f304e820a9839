"""Clients with and without an event loop, in several threads, and that nothing is left of them."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cvllm_jax import McpConnectionError, McpToolExecutionError, OtherError
from cvllm_jax.mcp import McpClient, McpServerConfig, McpServers, McpToolCall

ADD = McpToolCall(name="add", arguments={"a": 1, "b": 1})
SLEEP = McpToolCall(name="sleep", arguments={"seconds": 60})


def open_things():
    """Sockets, pipes, threads and children of this process."""
    descriptors = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if exists(name)]
    kept = sum(target.startswith(("socket:", "pipe:")) for target in descriptors)
    ours = [thread.name for thread in threading.enumerate() if thread.name == "MCP clients"]
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return kept, ours, len(children.stdout.split())


def exists(name):
    return os.path.exists(f"/proc/self/fd/{name}") or os.path.islink(f"/proc/self/fd/{name}")


def wait_for(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.mark.anyio
@pytest.mark.parametrize(("transport", "times"), [("http", 10), ("legacy", 3), ("sse", 3)])
async def test_many_connections_leave_nothing(sample_urls, transport, times):
    config = McpServerConfig(url=sample_urls[transport], timeout_secs=20)

    async def cycle():
        async with await McpClient.connect(config) as client:
            assert (await client.call_tool(ADD)).text == "2"

    await cycle()
    tasks = asyncio.all_tasks()
    for _ in range(times):
        await asyncio.gather(*(cycle() for _ in range(10)))
    await asyncio.sleep(0.1)
    assert asyncio.all_tasks() <= tasks
    gc.collect()
    wait_for(lambda: len(client_sockets(config.url)) == 0)


def client_sockets(url):
    """This process's connected sockets to the server at ``url``, seen from the client's side."""
    port = f"{int(url.split(':')[2].split('/')[0]):04X}"
    with open("/proc/self/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return [row for row in rows if row[2].endswith(f":{port}") and row[3] in ("01", "08")]


@pytest.mark.anyio
async def test_many_children_leave_nothing(sample_config):
    if sample_config.command is None:
        pytest.skip("for child processes")
    before = open_things()
    for _ in range(3):
        async with await McpClient.connect(sample_config) as client:
            assert (await client.call_tool(ADD)).text == "2"
    await asyncio.sleep(0)
    assert open_things() == before


def test_without_an_event_loop(sample_config):
    with McpClient.connect_sync(sample_config) as client:
        assert "add" in [tool.name for tool in client.list_tools_sync()]
        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(lambda _: client.call_tool_sync(ADD).text, range(16)))
        assert results == ["2"] * 16
        with pytest.raises(McpToolExecutionError, match=r"did not answer within 0\.2 seconds"):
            client.call_tool_sync(SLEEP, timeout_secs=0.2)
    assert "MCP clients" not in [thread.name for thread in threading.enumerate()]
    client.close_sync()
    with pytest.raises(McpConnectionError):
        client.list_tools_sync()


def test_clients_without_a_loop_share_one_thread(sample_urls):
    config = McpServerConfig(url=sample_urls["http"])
    first, second = McpClient.connect_sync(config), McpClient.connect_sync(config)
    assert [thread.name for thread in threading.enumerate()].count("MCP clients") == 1
    first.close_sync()
    assert second.call_tool_sync(ADD).text == "2"
    second.close_sync()
    assert "MCP clients" not in [thread.name for thread in threading.enumerate()]


def test_a_dropped_client_is_closed(sample_urls):
    client = McpClient.connect_sync(McpServerConfig(url=sample_urls["sse"]))
    assert client.call_tool_sync(ADD).text == "2"
    assert client_sockets(sample_urls["sse"])
    del client
    gc.collect()
    wait_for(lambda: "MCP clients" not in [thread.name for thread in threading.enumerate()])
    wait_for(lambda: not client_sockets(sample_urls["sse"]))


@pytest.mark.anyio
async def test_a_dropped_client_of_a_loop_is_closed(sample_urls):
    before = asyncio.all_tasks()
    client = await McpClient.connect(McpServerConfig(url=sample_urls["sse"]))
    assert (await client.call_tool(ADD)).text == "2"
    del client
    gc.collect()
    for _ in range(100):
        if asyncio.all_tasks() <= before:
            break
        await asyncio.sleep(0.02)
    assert asyncio.all_tasks() <= before


@pytest.mark.anyio
async def test_from_another_loop_and_thread(sample_urls):
    config = McpServerConfig(url=sample_urls["http"])
    client = await McpClient.connect(config)
    async with client:
        assert (await asyncio.to_thread(client.call_tool_sync, ADD)).text == "2"
        assert (await asyncio.to_thread(asyncio.run, client.call_tool(ADD))).text == "2"
        with pytest.raises(OtherError, match="own event loop"):
            client.call_tool_sync(ADD)
    in_background = await asyncio.to_thread(McpClient.connect_sync, config)
    async with in_background:
        assert (await in_background.call_tool(ADD)).text == "2"
        running = asyncio.create_task(in_background.call_tool(SLEEP))
        await asyncio.sleep(0.1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


def test_a_client_ends_with_its_loop(sample_urls):
    client = asyncio.run(McpClient.connect(McpServerConfig(url=sample_urls["http"])))
    for use in (client.list_tools_sync, lambda: asyncio.run(client.list_tools())):
        with pytest.raises(McpConnectionError, match=r"event loop .* has ended"):
            use()
    client.close_sync()


@pytest.mark.anyio
async def test_a_client_that_was_closed_before_its_first_use(sample_urls):
    servers = McpServers({"s": McpServerConfig(url=sample_urls["http"])})
    await servers.aclose()
    with pytest.raises(McpConnectionError, match="the client is closed"):
        await servers.tools("s")


def test_without_the_sdk():
    """The library can be imported, and says what is missing."""
    code = """
import sys
sys.modules["mcp"] = None
from cvllm_jax.mcp import McpClient, McpServerConfig
try:
    McpClient.connect_sync(McpServerConfig(command="x"))
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ConfigError MCP needs the mcp package, 2.3 or later: pip install 'cvllm-jax[mcp]'\n"


@pytest.mark.anyio
async def test_two_hundred_callers_of_a_slow_server(sample_urls):
    async with McpServers({"s": McpServerConfig(url=sample_urls["http"], timeout_secs=30)}) as servers:
        await servers.tools("s")
        tasks = asyncio.all_tasks()
        slow = McpToolCall(name="sleep", arguments={"seconds": 1})
        callers = [asyncio.create_task(servers.call("s", slow)) for _ in range(200)]
        await asyncio.sleep(0.5)
        for caller in callers[::2]:
            caller.cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert [result.text for result in results[1::2]] == ["slept"] * 100
        assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
        await asyncio.sleep(0.2)
        assert asyncio.all_tasks() <= tasks
    await asyncio.sleep(0.2)
    wait_for(lambda: not client_sockets(sample_urls["http"]))


@pytest.mark.anyio
async def test_secrets_are_never_shown(sample_urls, caplog):
    caplog.set_level(0)
    secrets = ("letmein-secret", "header-secret")
    for transport, url in sample_urls.items():
        config = McpServerConfig(url=url, auth=secrets[0], headers={"X-Key": secrets[1]}, timeout_secs=20)
        async with await McpClient.connect(config) as client:
            echoed = await client.call_tool(McpToolCall(name="authorization"))
            assert secrets[0] in echoed.text  # what a tool answers is its own affair
            shown = [repr(config), str(config), repr(client), repr(McpServers({transport: config}))]
            with pytest.raises(McpToolExecutionError) as caught:
                await client.call_tool(SLEEP, timeout_secs=0.2)
            shown.append(str(caught.value))
        assert not [text for text in shown for secret in secrets if secret in text]
    logged = [
        record.getMessage() for record in caplog.records if record.name.startswith(("cvllm", "httpx", "httpcore"))
    ]
    assert not [text for text in logged for secret in secrets if secret in text]
