"""The MCP servers that one request may use: configured ones by their label, others by their URL."""

from __future__ import annotations

from cvllm_jax.errors import ConfigError, McpConnectionError
from cvllm_jax.mcp import McpServerConfig, McpServers, McpTool, McpToolCall, McpToolResult, UrlPolicy
from cvllm_jax.openai.errors import RequestError
from cvllm_jax.responses.types import HostedMcpTool, ResponseRequest

__all__ = ["RequestServers"]


class RequestServers:
    """Connections for one response. Those of configured servers are shared and stay; those of others end with it."""

    def __init__(self, own: McpServers, shared: McpServers, own_labels: frozenset[str]) -> None:
        self._own = own
        self._shared = shared
        self._own_labels = own_labels

    @classmethod
    async def of(
        cls, request: ResponseRequest, shared: McpServers, policy: UrlPolicy, timeout_secs: float
    ) -> RequestServers:
        """The servers of the request's MCP tools.

        Raises RequestError for a label that no server has, and for a URL that is none or leads where the policy does
        not allow.
        """
        configs = {}
        for index, tool in enumerate(request.tools or ()):
            if not isinstance(tool, HostedMcpTool):
                continue
            if tool.server_url is None:
                if tool.server_label not in shared.labels:
                    raise RequestError(
                        f"There is no MCP server labelled '{tool.server_label}' here, and the tool has no "
                        "'server_url'.",
                        param=f"tools[{index}].server_url",
                        code="missing_required_parameter",
                    )
                continue
            try:
                configs[tool.server_label] = McpServerConfig(
                    url=tool.server_url,
                    auth=tool.authorization,
                    headers=tool.headers or {},
                    timeout_secs=timeout_secs,
                )
                await policy.check(tool.server_url)
            except ConfigError as error:
                named = {"url": "server_url", "auth": "authorization"}.get(error.param or "", error.param)
                raise RequestError(
                    f"Invalid 'tools[{index}]': {error}.", param=f"tools[{index}].{named}", code="invalid_value"
                ) from None
            except McpConnectionError as error:
                raise RequestError(
                    f"Invalid 'tools[{index}].server_url': {error}.",
                    param=f"tools[{index}].server_url",
                    code="mcp_server_not_allowed",
                ) from None
        return cls(McpServers(configs, policy), shared, frozenset(configs))

    async def tools(self, label: str) -> list[McpTool]:
        return await self._of(label).tools(label)

    async def call(self, label: str, call: McpToolCall, timeout_secs: float | None = None) -> McpToolResult:
        return await self._of(label).call(label, call, timeout_secs)

    async def aclose(self) -> None:
        await self._own.aclose()

    def _of(self, label: str) -> McpServers:
        return self._own if label in self._own_labels else self._shared
