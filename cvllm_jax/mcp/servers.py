"""Several MCP servers by label, and names for their tools that do not collide."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Self

from cvllm_jax.errors import ConfigError, shown
from cvllm_jax.mcp.access import UrlPolicy
from cvllm_jax.mcp.client import McpClient
from cvllm_jax.mcp.config import McpServerConfig
from cvllm_jax.openai.mcp_types import McpTool, McpToolCall, McpToolResult

__all__ = ["McpServers", "unique_names"]

#: Of a function's name, as OpenAI has it.
_MAX_NAME_CHARS = 64


class McpServers:
    """MCP servers by label; each is connected to when it is first asked. One event loop uses them all."""

    def __init__(self, configs: Mapping[str, McpServerConfig], policy: UrlPolicy | None = None) -> None:
        """``policy`` says which hosts the servers' URLs may lead to; None: any."""
        self._clients = {label: McpClient(config, policy=policy, label=label) for label, config in configs.items()}

    @property
    def labels(self) -> list[str]:
        """The names by which the servers were given."""
        return list(self._clients)

    async def tools(self, label: str) -> list[McpTool]:
        """What the server offers now. Raises McpConnectionError, and ConfigError for an unknown label."""
        return await self._client(label).list_tools()

    async def call(self, label: str, call: McpToolCall, timeout_secs: float | None = None) -> McpToolResult:
        """As :meth:`McpClient.call_tool`; ``call`` has the name that the server gave the tool."""
        return await self._client(label).call_tool(call, timeout_secs=timeout_secs)

    async def aclose(self) -> None:
        """End all connections, and what still runs."""
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _client(self, label: str) -> McpClient:
        if label not in self._clients:
            raise ConfigError(f"there is no MCP server with the label {shown(label)}", param="server_label")
        return self._clients[label]


def unique_names(tools: Sequence[tuple[str, str]], taken: Collection[str] = ()) -> list[str]:
    """Names under which a model can tell tools apart, for ``(label, name)`` each, in their order.

    A tool keeps its name where no other one has it; else its server's label is put before it. All are names as
    OpenAI's functions have: up to 64 letters, digits, underscores and hyphens. ``taken`` are names of other tools.
    """
    bare = [_valid_name(name) for _, name in tools]
    count = Counter(bare)
    names = {index: name for index, name in enumerate(bare) if count[name] == 1 and name not in taken}
    used = {*taken, *names.values()}
    for index, (label, name) in enumerate(tools):
        if index not in names:
            names[index] = _unused(_valid_name(f"{label}__{name}"), used)
            used.add(names[index])
    return [names[index] for index in range(len(tools))]


def _valid_name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", text) or "tool"
    if len(name) <= _MAX_NAME_CHARS:
        return name
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{name[: _MAX_NAME_CHARS - 9]}_{digest}"


def _unused(name: str, used: Collection[str]) -> str:
    number = 2
    found = name
    while found in used:
        suffix = f"_{number}"
        found = f"{name[: _MAX_NAME_CHARS - len(suffix)]}{suffix}"
        number += 1
    return found
