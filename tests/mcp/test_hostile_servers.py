"""Servers that are down, slow, broken or malicious: each operation ends in time, with its cause in one sentence."""

import asyncio
import gzip
import json
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
from served import FakeServer, hang_up, once, raw_server, respond, result_of, status, stay_silent, text_result

from cvllm_jax import Error, McpConnectionError, McpToolExecutionError
from cvllm_jax.mcp import McpClient, McpServerConfig, McpToolCall

pytestmark = pytest.mark.anyio

ACT = McpToolCall(name="act")
LOOK = McpToolCall(name="look")
SAMPLE_SERVER = Path(__file__).parent / "sample_server.py"
MAY_HAVE_RUN = "the call may have been carried out"


@contextmanager
def fails(kind, match, within=3.0):
    begun = time.monotonic()
    with pytest.raises(Error, match=match) as caught:
        yield
    assert time.monotonic() - begun < within
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@asynccontextmanager
async def connected(fake, **settings):
    async with fake.served() as url:
        config = McpServerConfig(url=url, transport="http", **{"timeout_secs": 1.0, **settings})
        async with await McpClient.connect(config) as client:
            yield client


async def raw(writer, data):
    writer.write(data)
    await writer.drain()


# connecting


async def test_down():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nobody listens
        config = McpServerConfig(url=f"http://127.0.0.1:{unused.getsockname()[1]}/mcp")
        with fails(McpConnectionError, "cannot be connected to: Connection refused"):
            await McpClient.connect(config)


async def accept_and_wait(reader, writer):
    await asyncio.sleep(60)


async def hang_up_at_once(reader, writer):
    await reader.read(1)


async def speak_nonsense(reader, writer):
    await reader.read(1)
    await raw(writer, b"\x00\xff\xfe220 mail.example.com ESMTP\r\n" * 100)


async def drip(reader, writer):
    for byte in b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + b"X-Y: z\r\n" * 10_000:
        await raw(writer, bytes([byte]))
        await asyncio.sleep(0.05)


async def endless_headers(reader, writer):
    await raw(writer, b"HTTP/1.1 200 OK\r\n")
    while True:
        await raw(writer, b"X-Y: z\r\n" * 100)


@pytest.mark.parametrize("transport", ["http", "sse"])
@pytest.mark.parametrize(
    ("handle", "cause"),
    [
        (accept_and_wait, "did not answer within 1 seconds"),
        (hang_up_at_once, "closed the connection before its answer was whole"),
        (speak_nonsense, "does not speak HTTP"),
        (drip, "did not answer within 1 seconds"),
        (endless_headers, "does not speak HTTP|closed the connection"),
    ],
)
async def test_no_server_of_this_kind(handle, cause, transport):
    async with raw_server(handle) as origin:
        config = McpServerConfig(url=f"{origin}/mcp", transport=transport, timeout_secs=1)
        with fails(McpConnectionError, cause):
            await McpClient.connect(config)


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"<html>", "is no JSON-RPC message"),
        (b"[1, 2, 3]", "is no JSON-RPC message"),
        (b'{"jsonrpc": "2.0", "id": 1', "is no JSON-RPC message"),
        (b"[" * 100_000, "is no JSON-RPC message"),
        (b'{"jsonrpc": "2.0", "id": 99, "result": {}}', "did not answer within 3 seconds"),
    ],
)
async def test_answers_that_are_no_handshake(answer, cause):
    async def odd(server, writer, request):
        await respond(writer, answer)

    async with FakeServer(initialize=odd).served() as url:
        with fails(McpConnectionError, cause, within=4):
            await McpClient.connect(McpServerConfig(url=url, transport="http", timeout_secs=3))


@pytest.mark.parametrize("result", [{}, {"protocolVersion": 7}, {"protocolVersion": "1999-12-31"}, [], None])
async def test_handshakes_that_make_no_sense(result):
    async def odd(server, writer, request):
        await respond(writer, result_of(request["message"], result))

    async with FakeServer(initialize=odd).served() as url:
        with fails(McpConnectionError, "connecting failed: (its answer is no|it speaks no)", within=4):
            await McpClient.connect(McpServerConfig(url=url, transport="http", timeout_secs=3))


@pytest.mark.parametrize("code", [401, 403, 404, 429, 500, 503])
async def test_refused_connections_name_the_status(code):
    fake = FakeServer(initialize=status(code))
    async with fake.served() as url:
        with fails(McpConnectionError, f"it answered {code} [A-Z]"):
            await McpClient.connect(McpServerConfig(url=url, transport="http", timeout_secs=1))
    assert fake.count("initialize") == 2


@pytest.mark.parametrize("odd", [status(401), status(404), status(503), hang_up])
async def test_a_connection_that_fails_once_is_made_again(odd):
    async with connected(FakeServer(initialize=once(odd)), timeout_secs=2) as client:
        assert (await client.call_tool(ACT)).text == "done"


# calling


@pytest.mark.parametrize("code", [400, 401, 404, 503])
async def test_a_call_that_was_refused_is_made_again_over_a_new_connection(code):
    fake = FakeServer(tools_call=once(status(code)))
    async with connected(fake) as client:
        assert (await client.call_tool(ACT)).text == "done"
        assert fake.count("initialize") == 2


@pytest.mark.parametrize("code", [401, 404])
async def test_a_call_that_is_refused_twice_fails(code):
    fake = FakeServer(tools_call=status(code))
    async with connected(fake) as client:
        with fails(McpConnectionError, f"calling 'act' failed: it answered {code} "):
            await client.call_tool(ACT)
        assert fake.count("tools/call") == 2


async def half_a_body(server, writer, request):
    await raw(writer, b'HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"jsonrpc"')
    writer.close()


async def half_a_stream(server, writer, request):
    await raw(writer, b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\n\r\n: hello\n\n")
    writer.close()


@pytest.mark.parametrize("odd", [hang_up, half_a_body, half_a_stream, status(500), status(502)])
async def test_a_call_that_broke_off_is_made_again_only_if_that_does_no_harm(odd):
    fake = FakeServer(tools_call=once(odd))
    async with connected(fake) as client:
        with fails(McpToolExecutionError, MAY_HAVE_RUN):
            await client.call_tool(LOOK)  # it is not known yet that it only reads
        assert fake.count("tools/call") == 1
        assert (await client.call_tool(LOOK)).text == "done"

    fake = FakeServer(tools_call=once(odd))
    async with connected(fake) as client:
        await client.list_tools()
        assert (await client.call_tool(LOOK)).text == "done"
        assert fake.count("tools/call") == 2

    fake = FakeServer(tools_call=once(odd))
    async with connected(fake) as client:
        await client.list_tools()
        with fails(McpToolExecutionError, MAY_HAVE_RUN):
            await client.call_tool(ACT)
        assert fake.count("tools/call") == 1


async def wrong_id(server, writer, request):
    await respond(writer, text_result({"id": 4711}, "not yours"))


async def nonsense_result(server, writer, request):
    await respond(writer, result_of(request["message"], {"content": [{"type": "text"}]}))


async def html(server, writer, request):
    await respond(writer, b"<html>", headers={"Content-Type": "text/html"})


async def no_json(server, writer, request):
    await respond(writer, b"\xff\xfe")


async def json_rpc_error(server, writer, request):
    error = {"code": -32000, "message": "out of\nbananas " + "x" * 10_000}
    await respond(writer, {"jsonrpc": "2.0", "id": request["message"]["id"], "error": error})


async def event_stream(writer, pieces):
    await raw(writer, b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\n\r\n")
    for piece in pieces:
        await raw(writer, piece)
        await asyncio.sleep(0.01)


async def endless_comments(server, writer, request):
    await event_stream(writer, (b": still here\n\n" for _ in range(10_000)))


async def endless_progress(server, writer, request):
    note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 0.1}}
    await event_stream(writer, (b"data: " + json.dumps(note).encode() + b"\n\n" for _ in range(10_000)))


async def never_resumes(server, writer, request):
    await event_stream(writer, [b"id: 7\nretry: 10\ndata:\n\n"])
    writer.close()


@pytest.mark.parametrize(
    ("odd", "cause"),
    [
        (stay_silent, "did not answer within 1 seconds"),
        (wrong_id, "what it answered within 1 seconds was no answer to this request"),
        (nonsense_result, "its answer is no valid MCP result"),
        (html, "Unexpected content type: text/html"),
        (no_json, "its answer is no JSON-RPC message"),
        (json_rpc_error, r"failed: out of bananas x+\.\.\."),
        (endless_comments, "did not answer within 1 seconds"),
        (endless_progress, "did not answer within 1 seconds"),
        (never_resumes, "closed the connection before it answered"),
    ],
)
async def test_calls_without_a_result(odd, cause):
    fake = FakeServer(tools_call=once(odd))
    async with connected(fake) as client:
        with fails(McpToolExecutionError, cause):
            await client.call_tool(ACT)
        assert fake.count("tools/call") == 1
        assert (await client.call_tool(ACT)).text == "done"


async def test_an_event_stream_that_names_no_endpoint():
    async with FakeServer(GET=endless_comments).served() as url:
        with fails(McpConnectionError, "did not answer within 1 seconds"):
            await McpClient.connect(McpServerConfig(url=url, transport="sse", timeout_secs=1))


async def long_json(server, writer, request):
    await respond(writer, text_result(request["message"], "x" * 10_000_000))


async def long_chunks(server, writer, request):
    await raw(writer, b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await raw(writer, b"10000\r\n" + b" " * 0x10000 + b"\r\n")


async def long_event(server, writer, request):
    await raw(writer, b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\n\r\ndata: ")
    while True:
        await raw(writer, b"x" * 0x10000)


async def many_parts(server, writer, request):
    parts = b"{}," * 1_300_000
    head = b'{"jsonrpc": "2.0", "id": %d, "result": {"content": [' % request["message"]["id"]
    await respond(writer, head + parts + b"{}]}}")


async def gzip_bomb(server, writer, request):
    packed = gzip.compress(b" " * 50_000_000)
    await respond(writer, packed, headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize(
    ("odd", "cause"),
    [
        (long_json, "larger than 4 MiB"),
        (long_chunks, "larger than 4 MiB"),
        (long_event, "larger than 4 MiB"),
        (many_parts, "more than 10000 parts"),
        (gzip_bomb, r"compressed its answer \(gzip\)"),
    ],
)
async def test_answers_of_any_size_are_not_read(odd, cause):
    async with connected(FakeServer(tools_call=once(odd)), timeout_secs=5) as client:
        with fails(McpToolExecutionError, cause, within=4):
            await client.call_tool(ACT)
        assert (await client.call_tool(ACT)).text == "done"


async def test_a_listing_without_an_end_is_given_up():
    async def next_page(server, writer, request):
        cursor = str(server.count("tools/list"))
        await respond(writer, result_of(request["message"], {"tools": [], "nextCursor": cursor}))

    fake = FakeServer(tools_list=next_page)
    async with connected(fake, timeout_secs=5) as client:
        with fails(McpConnectionError, "more than 100 pages of tools", within=5):
            await client.list_tools()
        assert fake.count("tools/list") == 100


async def test_all_pages_are_listed():
    async def page(server, writer, request):
        number = int(request["message"].get("params", {}).get("cursor", 0))
        tools = [{"name": f"tool{number}", "inputSchema": {"type": "object"}}]
        following = {"nextCursor": str(number + 1)} if number < 4 else {}
        await respond(writer, result_of(request["message"], {"tools": tools, **following}))

    async with connected(FakeServer(tools_list=page)) as client:
        assert [tool.name for tool in await client.list_tools()] == [f"tool{number}" for number in range(5)]


async def test_one_failing_call_leaves_the_others_alone():
    async def odd(server, writer, request):
        if request["message"]["params"]["name"] == "act":
            writer.close()
        else:
            await asyncio.sleep(0.3)
            await respond(writer, text_result(request["message"], "late"))

    async with connected(FakeServer(tools_call=odd)) as client:
        late = [asyncio.create_task(client.call_tool(LOOK)) for _ in range(5)]
        await asyncio.sleep(0.1)
        with fails(McpToolExecutionError, MAY_HAVE_RUN):
            await client.call_tool(ACT)
        assert [(await task).text for task in late] == ["late"] * 5


async def test_a_server_that_hangs_is_connected_to_anew():
    """After two calls without an answer: something between here and there may be stuck."""
    fake = FakeServer(tools_call=stay_silent)
    async with connected(fake, timeout_secs=0.3) as client:
        for _ in range(2):
            with fails(McpToolExecutionError, "did not answer"):
                await client.call_tool(ACT)
        del fake.odd["tools/call"]
        assert (await client.call_tool(ACT)).text == "done"
        assert fake.count("initialize") == 2


@contextmanager
def sample_process(port):
    """The sample server in a process of its own, which is killed at the end."""
    process = subprocess.Popen([sys.executable, str(SAMPLE_SERVER), str(port)])
    try:
        for _ in range(2000):
            with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.01)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("path", ["/mcp", "/legacy/mcp", "/sse"])
async def test_a_killed_server_is_found_again(path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    add = McpToolCall(name="add", arguments={"a": 1, "b": 1})
    with sample_process(port):
        client = await McpClient.connect(McpServerConfig(url=f"http://127.0.0.1:{port}{path}", timeout_secs=10))
        sleeping = asyncio.create_task(client.call_tool(McpToolCall(name="sleep", arguments={"seconds": 60})))
        await asyncio.sleep(0.5)
    async with client:
        with fails(McpToolExecutionError, MAY_HAVE_RUN):
            await sleeping
        with fails(McpConnectionError, "Connection refused|closed", within=5):
            await client.call_tool(add)
        with sample_process(port):
            assert (await client.call_tool(add)).text == "2"


# redirects


async def test_redirects_are_followed_within_one_server_only():
    other = FakeServer()
    async with other.served() as elsewhere:
        fake = FakeServer(initialize=status(307, Location=elsewhere))
        async with fake.served() as url:
            config = McpServerConfig(url=url, auth="letmein-secret", transport="http", timeout_secs=1)
            with fails(McpConnectionError, "it redirects to 127.0.0.1:[0-9]+, which is followed only within one"):
                await McpClient.connect(config)
    assert other.requests == []

    async def to_the_same_server(server, writer, request):
        if request["path"] != "/there":
            await respond(writer, b"", status=307, headers={"Location": "/there"})
        return request["path"] == "/there"

    async with connected(FakeServer(tools_call=to_the_same_server), auth="letmein-secret") as client:
        assert (await client.call_tool(ACT)).text == "done"
