"""Sessions: conversations with a model that runs tools by itself."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cvllm_jax.closing import AsyncClosing
from cvllm_jax.config import EngineConfig
from cvllm_jax.errors import ConfigError, OtherError, shown
from cvllm_jax.mcp import McpServerConfig, McpServers, load_mcp_config
from cvllm_jax.mcp.background import background_loop, run_on
from cvllm_jax.openai.adapter import AdapterConfig, OpenAIAdapter
from cvllm_jax.openai.types import Message, ToolCall
from cvllm_jax.responses.agent.functions import function_tool
from cvllm_jax.responses.agent.loop import run_agent
from cvllm_jax.responses.agent.mcp_tools import McpAgentTool, list_mcp_tools, mcp_agent_tools, select_tools
from cvllm_jax.responses.agent.types import AgentEvent, AgentTask, AgentTool
from cvllm_jax.responses.session.conversation import ConversationRecorder, ConversationResult, ConversationStream
from cvllm_jax.responses.session.options import ConversationOptions, SessionConfig

if TYPE_CHECKING:
    from cvllm_jax.engine.engine import InferenceEngine

__all__ = ["ResponsesSession", "ResponsesSessionBuilder"]


class ResponsesSession(AsyncClosing):
    """A model, MCP servers, and functions, which conversations use together.

    ``ResponsesSession(config)`` blocks while the model loads; ``await ResponsesSession.new(config)`` and the builder's
    ``await build()`` load in a thread. MCP servers are connected to when the first conversation asks for their tools.
    Any number of conversations may go on at once, from any thread or event loop.

    Close a session, or use it in ``with`` or ``async with``, to end its connections, and its engine if it made one.
    """

    def __init__(self, config: SessionConfig) -> None:
        """Raises ConfigError, and ModelLoadError where the model cannot be loaded."""
        self.config = config
        self._functions = [function_tool(function) for function in config.tools]
        _check_names(self._functions)
        if config.mcp_servers:
            McpServers(config.mcp_servers)  # shows now whether the mcp package is missing
        self._adapter = _adapter(config)
        self._connections: dict[asyncio.AbstractEventLoop, McpServers] = {}
        """One set for each event loop that conversations run in: connections belong to a loop and end with it."""
        self._lock = threading.Lock()
        self._background: asyncio.AbstractEventLoop | None = None
        self._leave_background: weakref.finalize[[], Any] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def new(cls, config: SessionConfig) -> Self:
        """Load in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(cls, config)

    @staticmethod
    def builder() -> ResponsesSessionBuilder:
        """A builder with a method for each setting, ended by ``build()`` or ``build_sync()``."""
        return ResponsesSessionBuilder()

    @property
    def adapter(self) -> OpenAIAdapter:
        """Answers single requests with the same model."""
        return self._adapter

    async def run_conversation(
        self, messages: str | Sequence[Message], options: ConversationOptions | None = None
    ) -> ConversationResult:
        """Go on with a conversation, running the tools that the model calls, until it has answered.

        ``messages`` may be one user's text. Calls at their end that have no result yet are taken as approved, and run
        first. Cancelling the task that waits ends the model's request and the tools that run.

        Raises what :func:`run_agent` raises, McpConnectionError if a server's tools cannot be listed, and ConfigError
        for ``allowed_tools`` that there are not. Failing tools are told to the model.
        """
        async with self.run_conversation_stream(messages, options) as stream:
            return await stream.finish()

    def run_conversation_sync(
        self, messages: str | Sequence[Message], options: ConversationOptions | None = None
    ) -> ConversationResult:
        """:meth:`run_conversation` for callers without an event loop."""
        return run_on(self._background_loop(), lambda: self.run_conversation(messages, options))

    def run_conversation_stream(
        self, messages: str | Sequence[Message], options: ConversationOptions | None = None
    ) -> ConversationStream:
        """:meth:`run_conversation` event by event. It begins with the first; what is wrong is raised there."""
        self._check_open()
        return ConversationStream(lambda: self._begin(messages, options or ConversationOptions()))

    def run_conversation_stream_sync(
        self, messages: str | Sequence[Message], options: ConversationOptions | None = None
    ) -> Generator[AgentEvent, None, ConversationResult]:
        """:meth:`run_conversation_stream` for callers without an event loop; the generator returns the result."""
        loop, stream = self._background_loop(), self.run_conversation_stream(messages, options)

        async def following() -> AgentEvent | None:
            return await anext(stream, None)

        try:
            while (event := run_on(loop, following)) is not None:
                yield event
            return stream.result
        finally:
            run_on(loop, stream.aclose)

    async def list_tools(self) -> list[AgentTool | McpAgentTool]:
        """All tools, with the names that the model sees. Raises McpConnectionError."""
        return [*self._functions, *await self._mcp_tools()]

    async def _begin(
        self, messages: str | Sequence[Message], options: ConversationOptions
    ) -> tuple[AsyncGenerator[AgentEvent, None], ConversationRecorder]:
        chat = options.chat([Message.user(messages)] if isinstance(messages, str) else messages)
        mcp_tools = await self._mcp_tools()
        task = AgentTask(
            chat=chat,
            tools=select_tools(self._functions, mcp_tools, options.allowed_tools),
            pending=_open_calls(chat.messages),
            max_turns=options.max_turns,
            max_tool_calls=options.max_tool_calls,
            approval=options.approval,
            tool_timeout_secs=options.tool_timeout_secs,
            max_tool_output_chars=options.max_tool_output_chars,
        )
        servers = {tool.name: tool.label for tool in mcp_tools}
        return run_agent(self._adapter, task), ConversationRecorder(chat.messages, servers)

    async def _mcp_tools(self) -> list[McpAgentTool]:
        self._check_open()
        if not self.config.mcp_servers:
            return []
        servers = self._servers_here()
        listings = await list_mcp_tools(servers, servers.labels)
        return mcp_agent_tools(servers, listings, taken=[tool.name for tool in self._functions])

    def _servers_here(self) -> McpServers:
        here = asyncio.get_running_loop()
        with self._lock:
            for loop in [loop for loop in self._connections if loop.is_closed()]:
                del self._connections[loop]
            if here not in self._connections:
                self._connections[here] = McpServers(self.config.mcp_servers)
            return self._connections[here]

    def _background_loop(self) -> asyncio.AbstractEventLoop:
        self._check_open()
        with self._lock:
            if self._background is None:
                self._background = background_loop.join()
                self._leave_background = weakref.finalize(self, background_loop.leave)
            return self._background

    def _check_open(self) -> None:
        if self._closed:
            raise OtherError("the session is closed")

    def close(self) -> None:
        """End the connections to MCP servers, and the engine if the session made it.

        Called in an event loop, it leaves that loop's connections to end as soon as the loop goes on.
        """
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, {}
            leave, self._leave_background = self._leave_background, None
        for loop, servers in connections.items():
            if loop is _loop_of_this_thread():
                task = loop.create_task(servers.aclose())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            elif loop.is_running():
                run_on(loop, servers.aclose)
        if leave is not None:
            leave()
            background_loop.wait(self._background)
        if self.config.engine is None:
            self._adapter.close()


class ResponsesSessionBuilder:
    """``await ResponsesSession.builder().model_path(p).add_mcp_server("files", url).build()``."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._servers: dict[str, McpServerConfig] = {}
        self._tools: list[Callable[..., Any]] = []

    def model_path(self, path: str | Path) -> Self:
        """As :attr:`SessionConfig.model_path`."""
        self._values["model_path"] = path
        return self

    def engine_config(self, config: EngineConfig) -> Self:
        """As :attr:`SessionConfig.engine_config`."""
        self._values["engine_config"] = config
        return self

    def engine(self, engine: InferenceEngine) -> Self:
        """An engine that is there already, which the session does not close."""
        self._values["engine"] = engine
        return self

    def adapter(self, config: AdapterConfig) -> Self:
        """As :attr:`SessionConfig.adapter`."""
        self._values["adapter"] = config
        return self

    def add_mcp_server(self, name: str, server: str | McpServerConfig, auth: str | None = None) -> Self:
        """A server under a label of one's own: its URL, and the Authorization header's value where it wants one.

        One that is a program, or has settings of its own, is given as McpServerConfig.
        """
        if isinstance(server, str):
            server = McpServerConfig(url=server, auth=auth)
        elif auth is not None:
            raise ConfigError("auth goes with a URL; an McpServerConfig has its own", param="auth")
        if name in self._servers:
            raise ConfigError(f"there are two MCP servers with the label {shown(name)}", param="mcp_servers")
        self._servers[name] = server
        return self

    def mcp_config(self, path: str | Path = "mcp.json") -> Self:
        """All servers of an ``mcpServers`` file; see :func:`load_mcp_config`."""
        for label, server in load_mcp_config(path).items():
            self.add_mcp_server(label, server)
        return self

    def add_tool(self, function: Callable[..., Any]) -> Self:
        """A Python function; see :func:`function_tool`."""
        self._tools.append(function)
        return self

    def config(self) -> SessionConfig:
        """What was collected so far, checked."""
        return SessionConfig(**self._values, mcp_servers=self._servers, tools=self._tools)

    async def build(self) -> ResponsesSession:
        """Load the model and connect to the MCP servers."""
        return await ResponsesSession.new(self.config())

    def build_sync(self) -> ResponsesSession:
        """:meth:`build` for callers without an event loop."""
        return ResponsesSession(self.config())


def _adapter(config: SessionConfig) -> OpenAIAdapter:
    engine = config.engine
    if engine is None:
        from cvllm_jax.engine.engine import InferenceEngine

        engine = InferenceEngine(config.engine_config or EngineConfig.from_model_path(config.model_path or ""))
    try:
        return OpenAIAdapter.with_config(engine, config.adapter or AdapterConfig())
    except BaseException:
        if config.engine is None:
            engine.close()
        raise


def _check_names(tools: Sequence[AgentTool]) -> None:
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"there are two functions called {shown(name)} among the tools", param="tools")


def _open_calls(messages: Sequence[Message]) -> list[ToolCall]:
    """Calls of the last assistant's turn that the tools' messages after it do not answer."""
    answered = set()
    for message in reversed(messages):
        if message.role == "tool":
            answered.add(message.tool_call_id)
        elif message.role == "assistant":
            return [call for call in message.tool_calls or () if call.id not in answered]
        else:
            break
    return []


def _loop_of_this_thread() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
