"""MCP servers that are started as a child process."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import Process, SubprocessStreamProtocol
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from cvllm_jax.mcp.config import McpServerConfig
from cvllm_jax.mcp.http import MAX_RESULT_BYTES

__all__ = ["stdio_transport"]

#: How long a server has to end by itself once its standard input is closed, and then once it is told to.
_EXIT_SECS = 2.0

type _Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


@asynccontextmanager
async def stdio_transport(config: McpServerConfig, on_end: Callable[[str], None]) -> AsyncGenerator[_Streams]:
    """Start the server and talk to it line by line, as the SDK's own transport does; lines are bounded here.

    ``on_end`` is told why the server can no longer be talked to. Raises OSError if it cannot be started.
    """
    async with _started(config) as (process, child):
        received, read_stream = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        write_stream, to_send = anyio.create_memory_object_stream[SessionMessage](0)
        errors: deque[str] = deque(maxlen=1)

        def report(cause: str) -> None:
            on_end(config.redacted(cause))

        tasks = [
            asyncio.create_task(_read(process, child, received, errors, report)),
            asyncio.create_task(_write(process, to_send)),
            asyncio.create_task(_read_errors(process, errors)),
        ]
        try:
            yield read_stream, write_stream
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for stream in (received, read_stream, write_stream, to_send):
                stream.close()


class _Child(SubprocessStreamProtocol):
    """Knows when the process ends; ``Process.wait`` waits for its pipes too, which a grandchild may hold."""

    def __init__(self) -> None:
        super().__init__(limit=MAX_RESULT_BYTES, loop=asyncio.get_running_loop())
        self._exited = asyncio.Event()

    def process_exited(self) -> None:
        super().process_exited()
        self._exited.set()

    async def wait(self) -> None:
        """Until it has ended, or its time is over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._exited.wait(), _EXIT_SECS)


@asynccontextmanager
async def _started(config: McpServerConfig) -> AsyncGenerator[tuple[Process, _Child]]:
    """The process, which is gone with all its children when this ends."""
    loop = asyncio.get_running_loop()
    transport, child = await loop.subprocess_exec(
        _Child,
        str(config.command),
        *config.args,
        env={**get_default_environment(), **config.env},
        cwd=config.cwd,
        start_new_session=True,
    )
    process = Process(transport, child, loop)
    try:
        yield process, child
    finally:
        try:
            if process.stdin is not None:
                process.stdin.close()
            await child.wait()
            if process.returncode is None:
                _signal_group(process, signal.SIGTERM)
                await child.wait()
        finally:
            _signal_group(process, signal.SIGKILL)  # what is left of it: programs that it started too
            await child.wait()
            transport.close()


def _signal_group(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        elif process.returncode is None:
            process.terminate()


async def _read(
    process: Process,
    child: _Child,
    received: MemoryObjectSendStream[SessionMessage | Exception],
    errors: deque[str],
    on_end: Callable[[str], None],
) -> None:
    assert process.stdout is not None
    with received:
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                on_end(f"it sent a message larger than {MAX_RESULT_BYTES >> 20} MiB, the most that is read")
                return
            if not line:
                break
            try:
                message = jsonrpc_message_adapter.validate_json(line, by_name=False)
            except ValueError:
                continue  # programs write other things to their standard output, such as logs
            await received.send(SessionMessage(message))
        await child.wait()
        await asyncio.sleep(0)  # its last words arrive
        ended = "it closed its standard output" if process.returncode is None else _exit_text(process.returncode)
        on_end(f"{ended}, saying {errors[0]!r}" if errors else ended)


async def _write(process: Process, to_send: MemoryObjectReceiveStream[SessionMessage]) -> None:
    assert process.stdin is not None
    with to_send, suppress(ConnectionError):
        async for message in to_send:
            text: str = message.message.model_dump_json(by_alias=True, exclude_unset=True)
            process.stdin.write(text.encode() + b"\n")
            await process.stdin.drain()


async def _read_errors(process: Process, errors: deque[Any]) -> None:
    """Keep the last line of what the server writes about its troubles."""
    assert process.stderr is not None
    tail = b""
    while chunk := await process.stderr.read(4096):
        tail = (tail + chunk)[-1000:]
        lines = tail.decode(errors="replace").split("\n")
        errors.extend(line.strip() for line in lines if line.strip())


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"its process ended with status {code}"
    return f"its process was ended by signal {-code}"
