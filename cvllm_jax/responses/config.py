"""What decides how responses are made, beside their requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cvllm_jax.errors import ConfigError, shown
from cvllm_jax.mcp import McpServerConfig, UrlPolicy

__all__ = ["ResponsesConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesConfig:
    """Settings of a :class:`~cvllm_jax.responses.ResponsesService`. Raises ConfigError for impossible ones."""

    mcp_servers: Mapping[str, McpServerConfig] = field(default_factory=dict)
    """MCP servers that requests may name by their label, without a URL."""
    mcp_allow: Sequence[str] = ()
    """Patterns ``HOST[:PORT]`` of the MCP servers that requests may name by a URL; see ``UrlPolicy``. None by
    default: a server that connects to any address a client names is a hole in its network."""
    mcp_approval: Literal["always", "never"] = "always"
    """Whether calls of MCP tools wait for approval where the request does not say."""
    mcp_timeout_secs: float = 30.0
    """For each answer of an MCP server that a request names by a URL."""
    max_turns: int = 128
    """Answers of the model in one response, at most: it may call tools for ever."""
    tool_timeout_secs: float = 60.0
    """A tool that takes longer has failed."""
    max_tool_output_chars: int = 100_000
    """A longer result of a tool is cut, and says so to the model."""

    def __post_init__(self) -> None:
        UrlPolicy(self.mcp_allow)
        if self.mcp_approval not in ("always", "never"):
            raise ConfigError(
                f"mcp_approval must be 'always' or 'never', not {shown(self.mcp_approval)}", param="mcp_approval"
            )
