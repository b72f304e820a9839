"""Operations on one MCP server: connected when needed, connected anew once, ended in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from mcp import Client, MCPError
from mcp_types import HEADER_MISMATCH, CallToolRequest, CallToolRequestParams, CallToolResult, Tool

from cvllm_jax.errors import ConfigError, McpConnectionError, McpToolExecutionError
from cvllm_jax.mcp.access import UrlPolicy
from cvllm_jax.mcp.config import McpServerConfig
from cvllm_jax.mcp.connection import AnsweredError, Connection, NoAnswerError
from cvllm_jax.mcp.http import Exchange
from cvllm_jax.openai.mcp_types import McpTool, McpToolCall, McpToolResult

__all__ = ["McpSession"]

#: A listing of more pages is given up: it may have no end.
_MAX_TOOL_PAGES = 100

#: A server that cannot be connected to may be restarting: it is asked again after this time.
_RECONNECT_PAUSE_SECS = 0.5


class McpSession:
    """What a client does on its event loop. It knows nothing of its client, which may be dropped."""

    def __init__(self, config: McpServerConfig, policy: UrlPolicy | None, name: str) -> None:
        self._config = config
        self._policy = policy
        self._name = name
        self._connections: list[Connection] = []
        """The last one is in use; the others answer their last requests."""
        self._closed = False
        self._repeatable: frozenset[str] = frozenset()

    async def connect(self) -> None:
        await self._operation("connecting", None, self._config.timeout_secs)

    async def list_tools(self) -> list[McpTool]:
        tools: list[McpTool] = await self._operation(
            "listing its tools", _all_tools, self._config.timeout_secs, repeatable=True
        )
        self._repeatable = frozenset(tool.name for tool in tools if _is_repeatable(tool))
        return tools

    async def call_tool(self, call: McpToolCall, timeout_secs: float | None) -> McpToolResult:
        try:
            params = CallToolRequestParams(name=call.name, arguments=dict(call.arguments))
            params.model_dump_json()
        except ValueError:
            raise McpToolExecutionError(f"the arguments of {call.name!r} are no JSON") from None

        async def send(client: Client) -> McpToolResult:
            return await _call_tool(client, CallToolRequest(params=params))

        return await self._operation(
            f"calling {call.name!r}",
            send,
            self._config.timeout_secs if timeout_secs is None else timeout_secs,
            repeatable=call.name in self._repeatable,
            error_once_sent=McpToolExecutionError,
        )

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(connection.close() for connection in self._connections))

    def drop(self) -> None:
        """Begin to close; for callers that cannot wait."""
        self._closed = True
        for connection in self._connections:
            connection.lose("the client was dropped")

    async def _operation(
        self,
        doing: str,
        send: Callable[[Client], Awaitable[Any]] | None,
        timeout_secs: float,
        *,
        repeatable: bool = False,
        error_once_sent: type[McpConnectionError | McpToolExecutionError] = McpConnectionError,
    ) -> Any:
        """``send``'s answer, or one sentence on what went wrong."""
        if not timeout_secs > 0:
            raise ConfigError("timeout_secs must be more than 0", param="timeout_secs")
        exchange = Exchange()
        answered = False
        try:
            async with asyncio.timeout(timeout_secs):
                return await self._with_one_reconnect(send, exchange, repeatable)
        except TimeoutError:
            cause = exchange.failure or f"it did not answer within {timeout_secs:g} seconds"
            if exchange.failure is None and exchange.answered:
                cause = f"what it answered within {timeout_secs:g} seconds was no answer to this request"
        except NoAnswerError as error:
            cause, exchange.sent = str(error), not error.refused
        except AnsweredError as error:
            cause, answered = str(error), True
        except McpConnectionError as error:
            cause, exchange.sent = str(error), False
        sent = error_once_sent if exchange.sent else McpConnectionError
        if sent is McpToolExecutionError and not answered:
            cause += "; the call may have been carried out"
        raise sent(f"{self._name}: {doing} failed: {cause}")

    async def _with_one_reconnect(
        self, send: Callable[[Client], Awaitable[Any]] | None, exchange: Exchange, repeatable: bool
    ) -> Any:
        """A request is sent again only if the server has not acted on it, or it does no harm to act twice."""
        for is_last in (False, True):
            connection = self._usable_connection()
            try:
                await connection.opened()
            except NoAnswerError:
                if is_last:
                    raise
                await asyncio.sleep(_RECONNECT_PAUSE_SECS)
                continue
            if send is None:
                return None
            try:
                return await connection.request(send, exchange)
            except NoAnswerError as error:
                connection.retire()
                if is_last or not (error.refused or repeatable):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _usable_connection(self) -> Connection:
        if self._closed:
            raise McpConnectionError("the client is closed")
        if not self._connections or not self._connections[-1].usable:
            self._connections = [connection for connection in self._connections if not connection.ended]
            self._connections.append(Connection(self._config, self._policy))
        return self._connections[-1]


async def _all_tools(client: Client) -> list[McpTool]:
    tools: list[McpTool] = []
    cursor = None
    for _ in range(_MAX_TOOL_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += map(_mcp_tool, page.tools)
        cursor = page.next_cursor
        if cursor is None:
            return tools
    raise McpConnectionError(f"it has more than {_MAX_TOOL_PAGES} pages of tools, the most that are read")


async def _call_tool(client: Client, request: CallToolRequest) -> McpToolResult:
    """Without the SDK's check of the answer against the tool's schema: a pattern in there may take forever."""
    try:
        result = await client.session.send_request(request, CallToolResult)
    except MCPError as error:
        if error.code != HEADER_MISMATCH:
            raise
        await _all_tools(client)  # the protocol's way: the listing says which arguments belong into headers
        result = await client.session.send_request(request, CallToolResult)
    return McpToolResult(
        content=[block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content],
        structured_content=result.structured_content,
        is_error=result.is_error,
    )


def _mcp_tool(tool: Tool) -> McpTool:
    annotations = tool.annotations
    return McpTool(
        name=tool.name,
        description=tool.description,
        input_schema=tool.input_schema,
        annotations=None if annotations is None else annotations.model_dump(by_alias=True, exclude_none=True),
    )


def _is_repeatable(tool: McpTool) -> bool:
    hints = tool.annotations or {}
    return hints.get("readOnlyHint") is True or hints.get("idempotentHint") is True
