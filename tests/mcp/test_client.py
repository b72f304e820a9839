"""The client against the SDK's own server, over every transport."""

import asyncio
import sys
import time
from pathlib import Path

import pytest

from cvllm_jax import McpConnectionError, McpToolExecutionError
from cvllm_jax.mcp import McpClient, McpServerConfig, McpServers, McpToolCall, UrlPolicy
from cvllm_jax.openai import Message, Tool

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(sample_config):
    async with await McpClient.connect(sample_config) as client:
        yield client


async def call(client, name, timeout_secs=None, **arguments):
    return await client.call_tool(McpToolCall(name=name, arguments=arguments), timeout_secs=timeout_secs)


async def test_tools_are_listed_and_called(client):
    tools = {tool.name: tool for tool in await client.list_tools()}
    assert tools["add"].description == "Adds two numbers."
    assert tools["add"].input_schema["required"] == ["a", "b"]
    assert tools["add"].annotations == {"readOnlyHint": True}
    result = await call(client, "add", a=2, b=3)
    assert (result.text, result.is_error, result.structured_content) == ("5", False, {"result": 5})
    assert Tool.from_mcp_list([tools["add"]])[0].function.parameters == tools["add"].input_schema


async def test_a_result_of_every_kind(client):
    result = await call(client, "kinds")
    assert [block["type"] for block in result.content] == [
        "text", "image", "audio", "resource", "resource", "resource_link",
    ]  # fmt: skip
    assert result.structured_content == {"n": 1}
    assert Message.from_mcp_result("c1", result, "kinds").content.splitlines() == [
        "one",
        "[image of type image/png, which is no text]",
        "[audio of type audio/wav, which is no text]",
        "a text",
        "[resource file:///b.bin, which is no text]",
        "[resource file:///l.txt]",
    ]


async def test_a_failing_tool_is_marked(client):
    result = await call(client, "boom")
    assert result.is_error
    assert Message.from_mcp_result("c1", result).content == "Error: Error executing tool boom"
    unknown = await call(client, "no_such_tool")
    assert unknown.is_error and "no_such_tool" in unknown.text


async def test_calls_run_at_the_same_time(client):
    begun = time.monotonic()
    results = await asyncio.gather(*(call(client, "sleep", seconds=0.5) for _ in range(8)))
    assert {result.text for result in results} == {"slept"}
    assert time.monotonic() - begun < 2


async def test_a_cancelled_caller_cancels_its_call_alone(client):
    before = (await call(client, "sleeps")).structured_content
    other = asyncio.create_task(call(client, "sleep", seconds=1))
    cancelled = asyncio.create_task(call(client, "sleep", seconds=60))
    await wait_for_sleeps(client, begun=before.get("begun", 0) + 2)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await wait_for_sleeps(client, cancelled=before.get("cancelled", 0) + 1)
    assert (await other).text == "slept"


async def wait_for_sleeps(client, **wanted):
    for _ in range(200):
        counts = (await call(client, "sleeps")).structured_content
        if all(counts.get(name, 0) >= count for name, count in wanted.items()):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{counts}, not {wanted}")


@pytest.mark.parametrize("arguments", [{"a": object()}, {1: 2}, {"a": "\ud800"}])
async def test_arguments_that_are_no_json(sample_urls, arguments):
    async with await McpClient.connect(McpServerConfig(url=sample_urls["http"])) as client:
        with pytest.raises(McpToolExecutionError, match="the arguments of 'add' are no JSON"):
            await client.call_tool(McpToolCall(name="add", arguments=arguments))


async def test_a_slow_call_ends_in_time_and_the_next_one_works(client):
    begun = time.monotonic()
    with pytest.raises(McpToolExecutionError, match=r"'sleep' failed: it did not answer within 0\.3 seconds; the call"):
        await call(client, "sleep", timeout_secs=0.3, seconds=60)
    assert time.monotonic() - begun < 1
    assert (await call(client, "add", a=1, b=1)).text == "2"


async def test_closing_ends_what_runs(client):
    running = asyncio.create_task(call(client, "sleep", seconds=60))
    await asyncio.sleep(0.2)
    await client.close()
    with pytest.raises(McpToolExecutionError, match="the client was closed"):
        await running
    with pytest.raises(McpConnectionError, match="the client is closed"):
        await client.list_tools()
    await client.close()


async def test_a_result_may_be_large_but_not_any_size(client):
    size = 400_000  # twice: the SDK sends it as structured content too
    assert len((await call(client, "long_text", size=size)).text) == size
    with pytest.raises(McpToolExecutionError, match=r"larger than [14] MiB"):
        await call(client, "long_text", size=10_000_000)
    assert (await call(client, "add", a=1, b=1)).text == "2"


async def test_authorization_is_sent_with_its_scheme(sample_urls):
    for auth, sent in (("letmein", "Bearer letmein"), ("Basic eDp5", "Basic eDp5"), (None, "none")):
        for url in sample_urls.values():
            async with await McpClient.connect(McpServerConfig(url=url, auth=auth)) as client:
                assert (await call(client, "authorization")).text == sent


async def test_the_transport_is_found(sample_urls):
    """auto falls back to SSE where the server knows no streamable HTTP at the URL."""
    for url, transport in ((sample_urls["sse"], "sse"), (sample_urls["http"], "http")):
        for named in ("auto", transport):
            async with await McpClient.connect(McpServerConfig(url=url, transport=named)) as client:
                assert (await call(client, "add", a=1, b=1)).text == "2"
    wrong = McpServerConfig(url=sample_urls["sse"], transport="http", timeout_secs=5)
    with pytest.raises(McpConnectionError, match="405 Method Not Allowed"):
        await McpClient.connect(wrong)


async def test_a_policy_lets_through_what_it_names(sample_urls):
    for url in sample_urls.values():
        config = McpServerConfig(url=url)
        async with await McpClient.connect(config, policy=UrlPolicy(["127.0.0.1"])) as client:
            assert (await call(client, "add", a=1, b=1)).text == "2"
        with pytest.raises(McpConnectionError, match="no public address"):
            await McpClient.connect(config, policy=UrlPolicy(["*"]))


async def test_a_child_inherits_little(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    server = str(Path(__file__).parent / "sample_server.py")
    config = McpServerConfig(command=sys.executable, args=[server], env={"GIVEN": "x"})
    async with await McpClient.connect(config) as client:
        names = (await call(client, "environment")).structured_content["result"]
    assert "GIVEN" in names and "PATH" in names and "HF_TOKEN" not in names


async def test_servers_by_label(sample_urls):
    configs = {label: McpServerConfig(url=url) for label, url in sample_urls.items()}
    configs["down"] = McpServerConfig(url="http://127.0.0.1:1/mcp", timeout_secs=5)
    async with McpServers(configs) as servers:
        assert servers.labels == ["http", "sse", "legacy", "down"]
        listed = await asyncio.gather(*(servers.tools(label) for label in sample_urls for _ in range(3)))
        assert len({tuple(tool.name for tool in tools) for tools in listed}) == 1
        assert (await servers.call("sse", McpToolCall(name="add", arguments={"a": 1, "b": 1}))).text == "2"
        with pytest.raises(McpConnectionError, match=r"^MCP server 'down': listing its tools failed: .*refused"):
            await servers.tools("down")
