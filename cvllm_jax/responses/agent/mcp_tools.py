"""Tools of MCP servers as an agent's tools."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from cvllm_jax.errors import ConfigError, shown
from cvllm_jax.mcp import McpTool, McpToolCall, McpToolResult, unique_names
from cvllm_jax.openai.types import Message, Tool, ToolCall
from cvllm_jax.responses.agent.types import AgentTool, ToolOutcome, ToolRunner

__all__ = ["McpAgentTool", "ToolServers", "list_mcp_tools", "mcp_agent_tools", "select_tools"]


class ToolServers(Protocol):
    """MCP servers by label, such as :class:`cvllm_jax.mcp.McpServers`."""

    async def tools(self, label: str) -> list[McpTool]: ...

    async def call(self, label: str, call: McpToolCall, timeout_secs: float | None = None) -> McpToolResult: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class McpAgentTool:
    """A tool of an MCP server, and where it comes from."""

    label: str
    """The server's."""
    tool: McpTool
    """As the server lists it; its ``name`` is the bare one."""
    agent_tool: AgentTool
    """As the model sees it, and runs it."""

    @property
    def name(self) -> str:
        """The name that the model sees: the bare one, unless another tool has it too."""
        return self.agent_tool.name


async def list_mcp_tools(servers: ToolServers, labels: Iterable[str]) -> dict[str, list[McpTool]]:
    """The tools of several servers by label, asked for at the same time.

    Raises McpConnectionError for the first server that cannot be asked.
    """
    labels = list(labels)
    listings = [asyncio.ensure_future(servers.tools(label)) for label in labels]
    try:
        return dict(zip(labels, await asyncio.gather(*listings)))
    finally:
        for listing in listings:
            listing.cancel()
        await asyncio.gather(*listings, return_exceptions=True)


def mcp_agent_tools(
    servers: ToolServers, listings: Mapping[str, Sequence[McpTool]], *, taken: Collection[str] = ()
) -> list[McpAgentTool]:
    """What the servers list, under names that are unique among themselves and not ``taken``."""
    found = [(label, tool) for label, tools in listings.items() for tool in tools]
    names = unique_names([(label, tool.name) for label, tool in found], taken)
    return [
        McpAgentTool(
            label=label,
            tool=tool,
            agent_tool=AgentTool(
                definition=Tool.from_mcp_list([replace(tool, name=name)])[0], run=_runner(servers, label, tool.name)
            ),
        )
        for (label, tool), name in zip(found, names, strict=True)
    ]


def _runner(servers: ToolServers, label: str, name: str) -> ToolRunner:
    async def run(call: ToolCall) -> ToolOutcome:
        result = await servers.call(label, replace(call.to_mcp_call(), name=name))
        text = Message.from_mcp_result(call.id, result).content
        assert isinstance(text, str)
        return ToolOutcome(text=text, error=text.removeprefix("Error: ") if result.is_error else None)

    return run


def select_tools(
    tools: Sequence[AgentTool], mcp_tools: Sequence[McpAgentTool], allowed: Collection[str] | None
) -> list[AgentTool]:
    """The tools that are ``allowed``, by the names that the model sees or the bare ones; None: all.

    A bare name that several servers have stands for the tools of all of them. Raises ConfigError for one that no tool
    has.
    """
    offered = [*tools, *(tool.agent_tool for tool in mcp_tools)]
    if allowed is None:
        return offered
    names = {tool.name for tool in offered}
    bare = {tool.name: tool.tool.name for tool in mcp_tools}
    unknown = [name for name in allowed if name not in names and name not in bare.values()]
    if unknown:
        there = ", ".join(sorted(names)) or "none at all"
        raise ConfigError(f"allowed_tools names {shown(unknown[0])}; the tools are: {there}", param="allowed_tools")
    return [tool for tool in offered if tool.name in allowed or bare.get(tool.name) in allowed]
