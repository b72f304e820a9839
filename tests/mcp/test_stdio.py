"""Servers that are child processes: what they may do, and that nothing of them is left."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest
from test_hostile_servers import fails

from cvllm_jax import McpConnectionError, McpToolExecutionError
from cvllm_jax.mcp import McpClient, McpServerConfig, McpToolCall

pytestmark = pytest.mark.anyio

ACT = McpToolCall(name="act")

#: A server in few lines; ``act`` is what it does when its tool is called.
SERVER = """
import json, os, signal, subprocess, sys, time
def send(text):
    sys.stdout.write(text + "\\n")
    sys.stdout.flush()
def answer(message, result):
    send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}))
def act(message):
    ACT
BEFORE
for line in sys.stdin:
    message = json.loads(line)
    if message["method"] == "initialize":
        capabilities = {"tools": {}}
        info = {"name": "s", "version": "1"}
        answer(message, {"protocolVersion": "2025-11-25", "capabilities": capabilities, "serverInfo": info})
    elif message["method"] == "tools/call":
        act(message)
        answer(message, {"content": [{"type": "text", "text": "done"}]})
    elif "id" in message:
        send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "unknown"}}))
AFTER
"""


def server(act="pass", before="", after="", mark="", **settings):
    script = SERVER.replace("ACT", act).replace("BEFORE", before).replace("AFTER", after)
    return McpServerConfig(command=sys.executable, args=["-c", script, mark], **{"timeout_secs": 10, **settings})


async def connect(*args, **settings):
    return await McpClient.connect(server(*args, **settings))


def processes_with(mark):
    """Ids of the living processes that have ``mark`` as an argument."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if mark.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def assert_gone(mark):
    """A process that was killed takes a moment to go."""
    deadline = time.monotonic() + 3
    while processes_with(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes_with(mark) == []


@pytest.fixture
def mark():
    """An argument that tells a test's processes from all others."""
    return f"mark-{os.getpid()}-{time.time_ns()}"


async def test_what_is_no_message_is_passed_over():
    async with await connect(before='print("Listening on stdio ...", flush=True); send("[1]"); send("")') as client:
        assert (await client.call_tool(ACT)).text == "done"


@pytest.mark.parametrize(
    ("act", "cause"),
    [
        ("sys.exit(3)", "its process ended with status 3; the call may have been carried out"),
        ('sys.exit("no such table")', "its process ended with status 1, saying 'no such table'"),
        ("os.kill(os.getpid(), 9)", "its process was ended by signal 9"),
        ("sys.stdout.close(); os.close(1); time.sleep(60)", "it closed its standard output"),
        ("sys.stdout.write('x' * 10_000_000)", "it sent a message larger than 4 MiB"),
        ("answer(message, {'content': [{}] * 1_000_000})", "more than 10000 parts"),
    ],
)
async def test_a_server_that_fails_amid_a_call(act, cause):
    async with await connect(act) as client:
        with fails(McpToolExecutionError, cause, within=8):
            await client.call_tool(ACT)


async def test_a_server_that_ended_is_started_again(mark):
    async with await connect(mark=mark) as client:
        for _ in range(2):
            assert (await client.call_tool(ACT)).text == "done"
            (child,) = processes_with(mark)
            os.kill(child, signal.SIGKILL)
            await asyncio.sleep(0.2)


async def test_a_silent_server_ends_in_time():
    config = McpServerConfig(command=sys.executable, args=["-c", "import time; time.sleep(60)"], timeout_secs=1)
    with fails(McpConnectionError, "did not answer within 1 seconds"):
        await McpClient.connect(config)


async def test_secrets_in_its_last_words_are_hidden():
    config = server(before="sys.exit('wrong key: ' + os.environ['KEY'])", env={"KEY": "sk-12345"})
    with fails(McpConnectionError, r"saying 'wrong key: \*\*\*'", within=10):
        await McpClient.connect(config)


STUBBORN = textwrap.dedent("""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(99)"
    subprocess.Popen([sys.executable, "-c", code, *sys.argv[1:]])
""")


async def test_nothing_is_left_of_a_stubborn_server(mark):
    client = await connect(before=STUBBORN, after="time.sleep(99)", mark=mark)
    assert len(processes_with(mark)) == 2
    begun = time.monotonic()
    await client.close()
    assert time.monotonic() - begun < 6
    assert_gone(mark)


PROGRAM = """
import asyncio, sys
from cvllm_jax.mcp import McpClient, McpServerConfig, McpToolCall
config = McpServerConfig(command=sys.executable, args={args!r})
"""
ENDINGS = {
    "sync": "client = McpClient.connect_sync(config); client.call_tool_sync(McpToolCall(name='act'))",
    "async": """
async def main():
    global client
    client = await McpClient.connect(config)
    await client.call_tool(McpToolCall(name="act"))
asyncio.run(main())
""",
    "error": "client = McpClient.connect_sync(config); raise SystemExit('boom')",
}


@pytest.mark.parametrize(  # each waits out a stubborn server
    "ending",
    [pytest.param(code, id=name, marks=pytest.mark.slow if name == "sync" else ()) for name, code in ENDINGS.items()],
)
def test_a_program_that_closes_nothing_leaves_nothing(ending, mark):
    args = list(server(before=STUBBORN, after="time.sleep(99)", mark=mark).args)
    code = PROGRAM.format(args=args) + ending
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr and "Task was destroyed" not in done.stderr, done.stderr
    assert_gone(mark)
