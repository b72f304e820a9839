"""MCP servers: connecting to them, listing and calling their tools, and which of them may be reached."""

from cvllm_jax.mcp.access import UrlPolicy
from cvllm_jax.mcp.client import McpClient
from cvllm_jax.mcp.config import McpServerConfig, load_mcp_config
from cvllm_jax.mcp.servers import McpServers, unique_names
from cvllm_jax.openai.mcp_types import McpTool, McpToolCall, McpToolResult

__all__ = [
    "McpClient",
    "McpServerConfig",
    "McpServers",
    "McpTool",
    "McpToolCall",
    "McpToolResult",
    "UrlPolicy",
    "load_mcp_config",
    "unique_names",
]
