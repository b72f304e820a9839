"""What the operator of a server decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cvllm_jax.mcp import McpServerConfig
from cvllm_jax.responses.config import ResponsesConfig
from cvllm_jax.responses.store import StoreLimits

__all__ = ["ServerSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    served_model_name: str | None = None
    """The id that requests name and /v1/models lists. None: the checkpoint's own name."""
    api_key: str | None = field(default=None, repr=False)
    """If set, every /v1 route wants ``Authorization: Bearer KEY``."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call this server from a browser; ``*`` for all."""
    max_body_bytes: int = 10_000_000
    keep_alive_seconds: float = 15.0
    """A stream that is silent for so long sends a comment, so that proxies keep it open."""
    tool_parser: str = "auto"
    """The format of the model's tool calls; see ``AdapterConfig``."""
    reasoning_parser: str = "auto"
    """The markup of the model's reasoning; see ``AdapterConfig``."""
    drain_seconds: float = 3.0
    """On shutdown running answers get so long to finish before they are ended."""
    store: str = ":memory:"
    """Where responses and conversations are kept: a file, ``postgresql://...``, or ``:memory:``."""
    store_limits: StoreLimits = field(default_factory=StoreLimits)
    mcp_servers: Mapping[str, McpServerConfig] = field(default_factory=dict)
    """MCP servers that requests may name by their label."""
    mcp_allow: tuple[str, ...] = ()
    """Patterns HOST[:PORT] of the MCP servers that requests may name by a URL; see :class:`cvllm_jax.mcp.UrlPolicy`."""
    mcp_approval: Literal["always", "never"] = "always"
    """Whether calls of MCP tools wait for approval where the request does not say."""
    strict: bool = False
    """Refuse what requests for responses have and this server would ignore."""

    def responses_config(self) -> ResponsesConfig:
        return ResponsesConfig(mcp_servers=self.mcp_servers, mcp_allow=self.mcp_allow, mcp_approval=self.mcp_approval)
